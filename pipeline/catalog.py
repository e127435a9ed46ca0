"""The catalog: the one file a user edits. Where the music is, what to compute, where to keep it."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Tag,
    ValidationError,
    WithJsonSchema,
)

from features.errors import FeatureInputError
from features.framing import Grid, Seconds
from pipeline.catalog_problems import KINDS, explanation, shown
from pipeline.definitions import AudioDefinition, CnnDefinition, Feature, FeatureDefinition, resolve
from pipeline.errors import CatalogError, did_you_mean
from pipeline.globs import glob_problem
from pipeline.urls import RemoteUrl, is_url, remote_url
from pipeline.yaml_lines import Problem, line_of, read_document

VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"expected a name of letters, digits, '_', '-' and '.', starting with a letter or digit, "
            f"got {name!r}."
        )
    return name


def _place(path: Any) -> Path | RemoteUrl:
    """A path of this machine, or a URL of another."""
    if isinstance(path, Path | RemoteUrl):
        return path
    if not isinstance(path, str):
        raise ValueError(f"expected a path or URL, got {shown(path)}.")
    if not path.strip():
        raise ValueError("expected a path or URL, got nothing.")
    return remote_url(path) if is_url(path) else Path(path)


def _checked_folder(path: Path | RemoteUrl) -> Path | RemoteUrl:
    if isinstance(path, RemoteUrl) and not path.in_bucket:
        raise ValueError(
            f"expected a folder, or a prefix of s3://, gs:// or az://, got {path.shown!r}. "
            "Web servers do not list their files: name those in a manifest."
        )
    return path


def _checked_root(path: Path | RemoteUrl) -> Path | RemoteUrl:
    if isinstance(path, RemoteUrl) and path.query:
        raise ValueError("expected a URL without a query: it would not reach the files below.")
    return path


def _checked_store(store: str) -> str:
    if not store.strip():
        raise ValueError("expected a path or URL, got nothing.")
    return store


def _checked_glob(pattern: str) -> str:
    if problem := glob_problem(pattern):
        raise ValueError(f"{problem}, got {pattern!r}.")
    return pattern


def _checked_manifest(path: Path | RemoteUrl) -> Path | RemoteUrl:
    name, told = (path.path, path.shown) if isinstance(path, RemoteUrl) else (path.name, str(path))
    if not name.lower().endswith((".csv", ".parquet")):
        raise ValueError(f"expected a file that ends in .csv or .parquet, got {told!r}.")
    return path


def _checked_model(model: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(model.get("kind"), str):
        raise ValueError("the required key 'kind' is missing.")
    return model


Name = Annotated[str, AfterValidator(_checked_name)]
Place = Annotated[Path | RemoteUrl, PlainValidator(_place), WithJsonSchema({"type": "string"})]
Glob = Annotated[str, AfterValidator(_checked_glob)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GridSettings(_Section):
    """How every array of the store is cut; fixed when the store is made."""

    hop_length: Annotated[int, Field(ge=1)] = Field(
        default=256, description="Samples from one frame to the next."
    )
    frames_per_chunk: Annotated[int, Field(ge=1)] = Field(
        default=1366, description="Frames in a chunk; 1366 frames of 256 samples at 12 kHz are 29.14 s."
    )
    min_tail_s: Annotated[Seconds, Field(ge=0)] = Field(
        default=3.0,
        description="A last piece shorter than this many seconds is dropped, unless it is the only one.",
    )


class FolderCollection(_Section):
    """Audio files below a folder, or below a prefix of a bucket."""

    path: Annotated[Place, AfterValidator(_checked_folder)] = Field(
        description="Folder, a relative one is relative to the catalog file; or s3://bucket/prefix (gs://, az://)."
    )
    include: Annotated[tuple[Glob, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Globs over the path below the folder, such as '**/*.ogg'. "
        "Without it, every file with an audio ending (wav, flac, mp3, ogg, opus, m4a, ...) at any depth.",
    )
    exclude: tuple[Glob, ...] = Field(
        default=(), description="Globs of files to leave out, such as 'live/**'."
    )


class ManifestCollection(_Section):
    """Audio files listed in a table, with their labels."""

    manifest: Annotated[Place, AfterValidator(_checked_manifest)] = Field(
        description="CSV (UTF-8, with a header) or Parquet file whose column 'uri' names audio files, by path or "
        "URL (s3, gs, az, https, http); every further column becomes a label. A path, or such a URL itself."
    )
    root: Annotated[Place, AfterValidator(_checked_root)] | None = Field(
        default=None,
        description="Folder, or URL of one, that relative uris start from; without it, the manifest's folder.",
    )


def _collection_tag(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return "manifest" if isinstance(value, ManifestCollection) else "folder"
    if not isinstance(value, Mapping) or ("path" in value) == ("manifest" in value):
        return None
    return "manifest" if "manifest" in value else "folder"


CollectionDefinition = Annotated[
    Annotated[FolderCollection, Tag("folder")] | Annotated[ManifestCollection, Tag("manifest")],
    Discriminator(_collection_tag),
]
ModelEntry = Annotated[
    dict[str, Any],
    AfterValidator(_checked_model),
    WithJsonSchema({"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string"}}}),
]


class Catalog(_Section):
    """Where the music is, what is computed from it, and where that is kept."""

    version: Literal[1] = Field(description="Version of this file's format.")
    store: Annotated[str, AfterValidator(_checked_store)] = Field(
        description="Folder of the store, a relative one is relative to this file; or s3://bucket/prefix "
        "(gs://, az://)."
    )
    grid: GridSettings = Field(
        default_factory=GridSettings, description="How tracks are cut; fixed when the store is made."
    )
    collections: Annotated[dict[Name, CollectionDefinition], Field(min_length=1)] = Field(
        description="Sources of audio files by name: a folder each, or a manifest."
    )
    features: dict[Name, FeatureDefinition] = Field(
        description="What to compute for every chunk, by name; exactly one of kind 'audio'."
    )
    models: dict[Name, ModelEntry] = Field(
        default_factory=dict, description="Models to fit from features, by name; each with its 'kind'."
    )

    _path: Path | None = PrivateAttr(default=None)
    _shown: str = PrivateAttr(default="catalog")
    _hash: str = PrivateAttr(default="")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def path(self) -> Path:
        """Absolute path of the file; of a catalog made in Python, where it would be saved."""
        return self._path or Path("catalog.yaml").absolute()

    @property
    def hash(self) -> str:
        """SHA-256 of the file's bytes, 64 hex digits; empty for a catalog made in Python."""
        return self._hash

    @property
    def resolved_grid(self) -> Grid:
        """The store's grid: the `grid` section at the sample rate of the audio feature."""
        try:
            return _grid(self)
        except FeatureInputError as error:
            raise self.error("grid", str(error)) from error

    def resolved_features(self) -> dict[str, Feature]:
        """Return every feature in its place, upstream first.

        Raises
        ------
        CatalogError
            If definitions do not fit together or a weights file cannot be read; with file and line.
        """
        try:
            return resolve(self.features, self.resolved_grid)
        except CatalogError as error:
            message = str(error)
            if message.startswith(f"{self._shown}:"):
                raise
            key = max((k for k in self._lines if message.startswith((f"{k}:", f"{k}."))), key=len, default="")
            raise CatalogError(f"{self._shown}:{line_of(key, self._lines)}: {message}") from error

    def error(self, key: str, message: str) -> CatalogError:
        """Return an error that names the file, the line and the dotted key it is about.

        Examples
        --------
        >>> raise catalog.error("collections.demo.path", "there is no such folder.")  # doctest: +SKIP
        """
        return CatalogError(f"{self._shown}:{line_of(key, self._lines)}: {key}: {message}")


def load_catalog(path: str | os.PathLike[str]) -> Catalog:
    """Read and check a catalog file.

    Parameters
    ----------
    path
        YAML file in UTF-8. `${NAME}` and `${NAME:-default}` in its values are taken from the environment.

    Returns
    -------
    Catalog
        With every local path absolute.

    Raises
    ------
    CatalogError
        One line for each problem: file, line, key, what was expected and what was got.
    """
    file = Path(path)
    shown = os.fspath(file)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise CatalogError(
            f"{shown}: there is no such file. Name another, at the command line by --catalog PATH."
        ) from None
    except OSError as error:
        raise CatalogError(f"{shown}: the catalog cannot be read: {error.strerror}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CatalogError(
            f"{shown}:{line}: not UTF-8: byte 0x{content[error.start]:02x}. Save the file as UTF-8."
        ) from error

    document = read_document(text, environment=os.environ)
    problems, catalog = list(document.problems), None
    if document.value is not None or not problems:
        catalog, found = _checked(document.value, document.lines)
        problems += found
    if problems or catalog is None:
        raise CatalogError("\n".join(_told(shown, problems)))
    folder = file.absolute().parent
    catalog = catalog.model_copy(update=_with_absolute_paths(catalog, folder))
    catalog._path, catalog._shown = folder / file.name, shown
    catalog._hash, catalog._lines = hashlib.sha256(content).hexdigest(), document.lines
    return catalog


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a catalog file, for editors that complete and check YAML."""
    schema = Catalog.model_json_schema(by_alias=True)
    for section in ("collections", "features", "models"):
        schema["properties"][section]["propertyNames"] = {"pattern": f"^{_NAME.pattern}$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "mirstore catalog",
    }


def _told(shown: str, problems: list[Problem]) -> list[str]:
    ordered = sorted(set(problems), key=lambda problem: (problem.line, problem.key, problem.message))
    return [f"{shown}:{p.line}: {p.key + ': ' if p.key else ''}{p.message}" for p in ordered]


def _checked(value: Any, lines: Mapping[str, int]) -> tuple[Catalog | None, list[Problem]]:
    """The catalog of a document, or all that is wrong with it."""
    if not isinstance(value, dict):
        return None, [
            Problem(1, "", "expected a mapping with the keys version, store, collections, features.")
        ]
    version = value.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        message = f"this mirstore reads version {VERSION}, got {version!r}."
        return None, [Problem(line_of("version", lines), "version", message)]
    found, catalog = _feature_problems(value.get("features")), None
    try:
        catalog = Catalog.model_validate(value)
        if not found:
            _grid(catalog)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            # A list is also "too short" where its items are wrong; those are told already.
            if details["type"] != "too_short" or not details["input"]:
                found.append(explanation(details, value, Catalog))
    except FeatureInputError as error:
        found.append(("grid", str(error)))
    return catalog, [Problem(line_of(key, lines), key, message) for key, message in found]


def _grid(catalog: Catalog) -> Grid:
    audio = [feature for feature in catalog.features.values() if isinstance(feature, AudioDefinition)]
    if len(audio) != 1:  # load_catalog says it better; this is for catalogs made in Python
        raise FeatureInputError(f"expected exactly one feature of kind audio, got {len(audio)}.")
    return Grid(sample_rate=audio[0].sample_rate, **catalog.grid.model_dump())


def _feature_problems(features: Any) -> list[tuple[str, str]]:
    """What is wrong between features; looked for even where single ones are wrong too."""
    if not isinstance(features, dict):
        return []
    entries = {name: entry for name, entry in features.items() if isinstance(entry, dict)}
    found = []
    audio = [name for name, entry in entries.items() if entry.get("kind") == "audio"]
    # Where an entry or its kind is wrong, that one may be the audio.
    kinds_known = all(isinstance(entry, dict) and entry.get("kind") in KINDS for entry in features.values())
    if len(audio) > 1 or (not audio and kinds_known):
        got = " and ".join(audio) or "none"
        found.append(("features", f"expected exactly one feature of kind audio, got {got}."))
    for name, entry in entries.items():
        source = entry.get("from")
        if isinstance(source, str) and source not in features:
            message = f"there is no feature {source!r}.{did_you_mean(source, features)}"
            found.append((f"features.{name}.from", message))
    return found


def _absolute(folder: Path, path: str | Path) -> Path:
    joined = folder / Path(path).expanduser()
    return joined.resolve() if ".." in joined.parts else joined


def _with_absolute_paths(catalog: Catalog, folder: Path) -> dict[str, Any]:
    """Fields of a catalog whose local paths start from its own folder."""
    collections: dict[str, Any] = {}
    for name, collection in catalog.collections.items():
        paths = {
            key: _absolute(folder, value)
            for key in ("path", "manifest", "root")
            if isinstance(value := getattr(collection, key, None), Path)
        }
        collections[name] = collection.model_copy(update=paths)
    features: dict[str, Any] = dict(catalog.features)
    for name, feature in catalog.features.items():
        if isinstance(feature, CnnDefinition) and _is_file(feature.weights, folder):
            features[name] = feature.model_copy(update={"weights": str(_absolute(folder, feature.weights))})
    store = catalog.store if is_url(catalog.store) else str(_absolute(folder, catalog.store))
    return {"store": store, "collections": collections, "features": features}


def _is_file(weights: str, folder: Path) -> bool:
    """Whether weights are a file's path: a misspelt published name keeps its did-you-mean."""
    if weights.startswith("random:") or is_url(weights):
        return False
    from features.downloads import PUBLISHED

    if weights in PUBLISHED:
        return False
    return "/" in weights or (folder / weights).exists() or not did_you_mean(weights, PUBLISHED)
