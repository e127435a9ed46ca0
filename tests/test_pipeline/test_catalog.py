"""The catalog file: what it gives, and what it says when it is wrong."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from features.framing import Grid
from pipeline.catalog import Catalog, FolderCollection, ManifestCollection, json_schema, load_catalog
from pipeline.errors import CatalogError
from pipeline.yaml_lines import line_of, read_document, substitute

ROOT = Path(__file__).parents[2]
GOOD = """\
version: 1
store: ./store
collections:
  demo: {path: ./music}
features:
  audio: {kind: audio}
  logmel:
    kind: log_mel
    from: audio
    n_mels: 96
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaints(folder: Path, text: str) -> list[str]:
    """Lines of the error for a text, without the folder."""
    path = write(folder, text)
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    return str(caught.value).replace(str(path), "catalog.yaml").split("\n")


def test_default_catalog_is_the_design() -> None:
    catalog = load_catalog(ROOT / "catalog.yaml")
    assert catalog.resolved_grid == Grid()
    assert catalog.collections["demo"] == FolderCollection(path=ROOT / "demo/music", include=("**/*.ogg",))
    assert list(catalog.features) == ["audio", "logmel", "mfcc", "embedding"]
    assert catalog.models == {}
    assert catalog.features["logmel"].model_dump(by_alias=True, exclude_unset=True) == {
        "kind": "log_mel",
        "from": "audio",
        "n_fft": 512,
        "hop_length": 256,
        "window": "hamming",
        "n_mels": 96,
        "htk": True,
        "log": "ln",
        "dtype": "float16",
    }


def test_paths_start_from_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "catalogs"
    inside.mkdir()
    text = GOOD.replace("./music", "../music") + "  mfcc: {kind: mfcc, from: logmel}\n"
    text = text.replace("collections:", "collections:\n  table: {manifest: t.csv, root: audio}")
    write(inside, text)
    monkeypatch.chdir(tmp_path)
    catalog = load_catalog("catalogs/catalog.yaml")
    assert catalog.path == inside / "catalog.yaml"
    assert catalog.store == str(inside / "store")
    assert catalog.collections["demo"] == FolderCollection(path=tmp_path / "music")
    assert catalog.collections["table"] == ManifestCollection(
        manifest=inside / "t.csv", root=inside / "audio"
    )
    assert catalog.hash == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("store", ["s3://bucket/prefix", "file:///data/store", "/data/store"])
def test_urls_and_absolute_stores_are_kept(tmp_path: Path, store: str) -> None:
    assert load_catalog(write(tmp_path, GOOD.replace("./store", store))).store == store


def test_resolved_features_come_upstream_first(tmp_path: Path) -> None:
    text = GOOD.replace("features:\n", "features:\n  mfcc: {kind: mfcc, from: logmel}\n")
    features = load_catalog(write(tmp_path, text)).resolved_features()
    assert list(features) == ["audio", "logmel", "mfcc"]
    assert features["mfcc"].row_shape == (90, 1366)


def test_grid_takes_the_rate_of_the_audio(tmp_path: Path) -> None:
    text = GOOD.replace("kind: audio}", "kind: audio, sample_rate: 22050}")
    catalog = load_catalog(write(tmp_path, text + "grid: {frames_per_chunk: 500, min_tail_s: 1}\n"))
    assert catalog.resolved_grid == Grid(sample_rate=22050, frames_per_chunk=500, min_tail_s=1.0)


def test_catalogs_made_in_python_are_checked_on_use() -> None:
    catalog = Catalog.model_validate(
        {"version": 1, "store": "s", "collections": {"a": {"path": "m"}}, "features": {}}
    )
    with pytest.raises(CatalogError, match="exactly one feature of kind audio, got 0"):
        _ = catalog.resolved_grid


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "n_mels: 96",
            "n_mel: 96",
            "catalog.yaml:10: features.logmel.n_mel: unknown key. Did you mean 'n_mels'?",
        ),
        (
            "n_mels: 96",
            "zzz: 96",
            "catalog.yaml:10: features.logmel.zzz: unknown key. Known keys: n_fft, hop_length, window, "
            "n_mels, fmin, fmax, htk, norm, exponent, log, floor, top_db, dtype.",
        ),
        (
            "n_mels: 96",
            "n_mels: many",
            "catalog.yaml:10: features.logmel.n_mels: expected a whole number, got 'many'.",
        ),
        ("n_mels: 96", "n_mels: 0", "catalog.yaml:10: features.logmel.n_mels: expected at least 1, got 0."),
        (
            "n_mels: 96",
            "n_mels:",
            "catalog.yaml:10: features.logmel.n_mels: expected a whole number, got nothing.",
        ),
        (
            "n_mels: 96",
            "window: hamming2",
            "catalog.yaml:10: features.logmel.window: expected 'hamming' or 'hann', got 'hamming2'. "
            "Did you mean 'hamming'?",
        ),
        (
            "kind: log_mel",
            "kind: logmel",
            "catalog.yaml:8: features.logmel.kind: expected one of audio, log_mel, mfcc, cnn, got 'logmel'. "
            "Did you mean 'log_mel'?",
        ),
        (
            "kind: log_mel",
            "kid: log_mel",
            "catalog.yaml:7: features.logmel.kind: this required key is missing: one of audio, log_mel, "
            "mfcc, cnn. Did you mean 'kind'?",
        ),
        (
            "from: audio",
            "from: adio",
            "catalog.yaml:9: features.logmel.from: there is no feature 'adio'. Did you mean 'audio'?",
        ),
        ("    from: audio\n", "", "catalog.yaml:7: features.logmel.from: this required key is missing."),
        (
            "audio: {kind: audio}",
            "audio: 3",
            "catalog.yaml:6: features.audio: expected a mapping, got 3.",
        ),
        ("store: ./store\n", "", "catalog.yaml:1: store: this required key is missing."),
        ("./store", "' '", "catalog.yaml:2: store: expected a path or URL, got nothing."),
        ("version: 1", "version: 7", "catalog.yaml:1: version: this mirstore reads version 1, got 7."),
        ("version: 1\n", "", "catalog.yaml:1: version: this required key is missing."),
        (
            "{path: ./music}",
            "{pth: ./music}",
            "catalog.yaml:4: collections.demo: expected either 'path' (a folder) or 'manifest' (a CSV or "
            "Parquet file), got neither. Did you mean 'path'?",
        ),
        (
            "{path: ./music}",
            "{path: a, manifest: b.csv}",
            "catalog.yaml:4: collections.demo: expected either 'path' (a folder) or 'manifest' (a CSV or "
            "Parquet file), got both.",
        ),
        (
            "{path: ./music}",
            "{path: 'https://host/music?token=x'}",
            "catalog.yaml:4: collections.demo.path: expected a folder, or a prefix of s3://, gs:// or az://, got "
            "'https://host/music'. Web servers do not list their files: name those in a manifest.",
        ),
        (
            "{path: ./music}",
            "{path: 's3://key:secret@bucket/music'}",
            "catalog.yaml:4: collections.demo.path: a URL cannot hold a user or a password. Credentials come from "
            "the environment.",
        ),
        (
            "{path: ./music}",
            "{manifest: 'ftp://host/songs.csv'}",
            "catalog.yaml:4: collections.demo.manifest: expected a URL of s3, gs, az, https or http, got 'ftp'.",
        ),
        (
            "{path: ./music}",
            "{manifest: songs.csv, root: 'https://host/music?token=x'}",
            "catalog.yaml:4: collections.demo.root: expected a URL without a query: it would not reach the files "
            "below.",
        ),
        (
            "{path: ./music}",
            "{path: ''}",
            "catalog.yaml:4: collections.demo.path: expected a path or URL, got nothing.",
        ),
        (
            "{path: ./music}",
            "{path: a, includes: ['*.ogg']}",
            "catalog.yaml:4: collections.demo.includes: unknown key. Did you mean 'include'?",
        ),
        (
            "{path: ./music}",
            "{path: a, include: '*.ogg'}",
            "catalog.yaml:4: collections.demo.include: expected a list, got '*.ogg'.",
        ),
        (
            "{path: ./music}",
            "{path: a, include: []}",
            "catalog.yaml:4: collections.demo.include: expected at least one entry, got an empty list.",
        ),
        (
            "{path: ./music}",
            "\n    path: a\n    include:\n    - '*.ogg'\n    - ../*.ogg",
            "catalog.yaml:8: collections.demo.include.1: must not hold '..': it matches below the "
            "collection's folder, got '../*.ogg'.",
        ),
        (
            "{path: ./music}",
            "{manifest: tracks.txt}",
            "catalog.yaml:4: collections.demo.manifest: expected a file that ends in .csv or .parquet, got "
            "'tracks.txt'.",
        ),
        (
            "  demo: {path: ./music}",
            "  {}",
            "catalog.yaml:3: collections: expected at least one entry, got an empty mapping.",
        ),
        (
            "  demo:",
            "  a/b:",
            "catalog.yaml:4: collections.a/b: expected a name of letters, digits, '_', '-' and '.', starting "
            "with a letter or digit, got 'a/b'.",
        ),
        (
            "  logmel:",
            "  log@mel:",
            "catalog.yaml:7: features.log@mel: expected a name of letters, digits, '_', '-' and '.', "
            "starting with a letter or digit, got 'log@mel'.",
        ),
        (
            "  demo:",
            "  2024:",
            "catalog.yaml:4: collections: a key must be text, got 2024. Write it between quotes.",
        ),
        (
            "version: 1",
            "version: 1\ngrid: {min_tail_s: 1000}",
            "catalog.yaml:2: grid: min_tail_s must be in [0, 29.14] (one chunk), got 1000.0.",
        ),
        (
            "version: 1",
            "version: 1\ngrid: {hop: 1}",
            "catalog.yaml:2: grid.hop: unknown key. Known keys: hop_length, frames_per_chunk, min_tail_s.",
        ),
        (
            "version: 1",
            "version: 1\nmodels: {bof: {clusters: 3}}",
            "catalog.yaml:2: models.bof: the required key 'kind' is missing.",
        ),
        (
            "audio: {kind: audio}",
            "audio: {kind: audio}\n  other: {kind: audio}",
            "catalog.yaml:5: features: expected exactly one feature of kind audio, got audio and other.",
        ),
        (
            "  audio: {kind: audio}",
            "  audio: {kind: mfcc, from: logmel}",
            "catalog.yaml:5: features: expected exactly one feature of kind audio, got none.",
        ),
        (
            "version: 1",
            "version: 1\nversion: 1",
            "catalog.yaml:2: version: duplicate key, first on line 1.",
        ),
        (
            "store: ./store",
            "store: ${MIRSTORE_NOT_SET}/x",
            "catalog.yaml:2: store: the environment variable MIRSTORE_NOT_SET is not set. Set it, or write "
            "${MIRSTORE_NOT_SET:-default}.",
        ),
        (
            "store: ./store",
            "store: ${}",
            "catalog.yaml:2: store: expected ${NAME} or ${NAME:-default}, got '${}'. "
            "Write $${ for a plain ${.",
        ),
    ],
)
def test_one_mistake_is_told_once_with_its_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    assert complaints(tmp_path, GOOD.replace(old, new, 1)) == [told]


def test_a_misspelt_required_key_is_unknown_and_missing(tmp_path: Path) -> None:
    assert complaints(tmp_path, GOOD.replace("store:", "stor:")) == [
        "catalog.yaml:1: store: this required key is missing.",
        "catalog.yaml:2: stor: unknown key. Did you mean 'store'?",
    ]


def test_all_mistakes_are_told_in_file_order(tmp_path: Path) -> None:
    text = GOOD.replace("./store", "${NOT_SET_EITHER}").replace("n_mels", "n_mel").replace("path", "pth")
    told = complaints(tmp_path, text)
    assert [line.split(":")[1] for line in told] == ["2", "4", "10"]


def test_a_missing_kind_is_not_also_a_missing_audio(tmp_path: Path) -> None:
    assert len(complaints(tmp_path, GOOD.replace("kind: audio", "kind: audoi"))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "catalog.yaml:1: the file is empty."),
        ("# only a comment\n", "catalog.yaml:1: the file is empty."),
        ("- 1\n", "catalog.yaml:1: expected a mapping with the keys"),
        ("null\n", "catalog.yaml:1: expected a mapping with the keys"),
        ("version: 1\nstore: [a\nb: c\n", "catalog.yaml:3: not valid YAML: "),
        ("version: 1\nstore:\n\tx: 1\n", "Indent with spaces."),
        ("version: 1\nstore: {a: ${X}}\n", "Put text that holds ${...} between quotes."),
        ("version: 1\nstore: !!python/object:os.system x\n", "catalog.yaml:2: not valid YAML: "),
        ("version: 1\nstore: *nowhere\n", "catalog.yaml:2: not valid YAML: "),
        ("version: 1\nstore: 2020-13-45\n", "catalog.yaml:2: store: '2020-13-45': "),
        (
            "version: 1\nmodels: &a {kind: x, b: *a}\n",
            "catalog.yaml:2: models.b: an alias must not hold itself.",
        ),
        ("version: 1\n---\nversion: 1\n", "catalog.yaml:2: not valid YAML: "),
        ("version: 1\nstore: a\x01b\n", "catalog.yaml:2: not valid YAML: the character U+0001."),
        ("store: " + "[" * 5000, "nested too deeply"),
        ("? [a]\n: 1\n", "a key must be text, got a list or mapping."),
    ],
)
def test_what_is_no_yaml_mapping(tmp_path: Path, text: str, told: str) -> None:
    lines = complaints(tmp_path, text)
    assert len(lines) == 1
    assert told in lines[0]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"no such file\. Name another, at the command line by --catalog PATH"
    ):
        load_catalog(tmp_path / "nowhere.yaml")
    with pytest.raises(CatalogError, match="cannot be read: Is a directory"):
        load_catalog(tmp_path)


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_bytes(GOOD.replace("./music", "Mötley").encode("latin-1"))
    with pytest.raises(CatalogError, match=r"catalog\.yaml:4: not UTF-8: byte 0xf6. Save the file as UTF-8"):
        load_catalog(path)
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(CatalogError, match=r"catalog\.yaml:1: not UTF-8"):
        load_catalog(path)
    path.write_bytes(GOOD.encode("utf-8-sig"))
    assert load_catalog(path).version == 1


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRSTORE_BUCKET", "s3://music")
    monkeypatch.setenv("MIRSTORE_BANDS", "64")
    monkeypatch.delenv("MIRSTORE_NOT_SET", raising=False)
    text = GOOD.replace("./store", "${MIRSTORE_BUCKET}/${MIRSTORE_NOT_SET:-prefix}/$${x}")
    catalog = load_catalog(write(tmp_path, text.replace("n_mels: 96", "n_mels: ${MIRSTORE_BANDS}")))
    assert catalog.store == "s3://music/prefix/${x}"
    assert catalog.features["logmel"].model_dump()["n_mels"] == 64


def test_merge_keys_and_aliases(tmp_path: Path) -> None:
    text = GOOD.replace("  logmel:", "  db: &db {kind: log_mel, from: audio, log: db}\n  logmel:")
    text += "  small: {<<: *db, n_mels: 40}\n  same: *db\n"
    features = load_catalog(write(tmp_path, text)).features
    assert features["small"].model_dump()["n_mels"] == 40
    assert features["small"].model_dump()["log"] == "db"
    assert features["same"] == features["db"]


def test_aliases_of_aliases_stay_small() -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert len(read_document("\n".join(levels), environment={}).lines) < 500_000


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_references_is_kept(text: str) -> None:
    assert substitute(text.replace("${", ""), {}) == text.replace("${", "")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.one_of(st.integers(), st.text("abc \n:#é", max_size=8), st.lists(st.booleans())),
        min_size=1,
    )
)
def test_documents_read_as_yaml_reads_them(value: dict[str, Any]) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    document = read_document(text, environment={})
    assert document.value == yaml.safe_load(text) == value
    assert document.problems == []
    for key in value:
        assert text.split("\n")[line_of(key, document.lines) - 1].startswith((key, f"'{key}'", f'"{key}"'))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "n_mels: 96",
            "hop_length: 128",
            "catalog.yaml:10: features.logmel.hop_length: must be the grid's hop",
        ),
        (
            "from: audio",
            "from: logmel",
            "catalog.yaml:9: features.logmel.from: logmel -> logmel is a circle.",
        ),
        (
            "n_mels: 96",
            "n_mels: 20\n  m: {kind: mfcc, from: logmel}",
            "catalog.yaml:11: features.m.n_mfcc: must be at most the 20 bands",
        ),
    ],
)
def test_errors_of_resolution_name_their_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    catalog = load_catalog(path)
    with pytest.raises(CatalogError) as caught:
        catalog.resolved_features()
    assert told in str(caught.value).replace(str(path), "catalog.yaml")


def test_weights_files_start_from_the_catalog(tmp_path: Path) -> None:
    (tmp_path / "bare").write_bytes(b"x")
    weights = ["random:3", "choi2016-msd", "w/choi.hdf5", "/data/choi.hdf5", "bare", "choi2016-mds", "other"]
    lines = [f"  e{i}: {{kind: cnn, from: logmel, weights: '{w}'}}\n" for i, w in enumerate(weights)]
    catalog = load_catalog(write(tmp_path, GOOD + "".join(lines)))
    assert [catalog.features[f"e{i}"].model_dump()["weights"] for i in range(len(weights))] == [
        "random:3",
        "choi2016-msd",
        str(tmp_path / "w/choi.hdf5"),
        "/data/choi.hdf5",
        str(tmp_path / "bare"),
        "choi2016-mds",  # close to a published name: the did-you-mean is worth more than a path
        str(tmp_path / "other"),
    ]


def test_missing_weights_name_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "  e: {kind: cnn, from: logmel, weights: choi2016-mds}\n")
    with pytest.raises(CatalogError) as caught:
        load_catalog(path).resolved_features()
    told = str(caught.value).replace(str(path), "catalog.yaml")
    assert told.startswith("catalog.yaml:11: features.e.weights: ")
    assert told.endswith("Did you mean 'choi2016-msd'?")


def test_schema_describes_the_file() -> None:
    schema = json_schema()
    assert schema["title"] == "mirstore catalog"
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"version", "store", "collections", "features"}
    assert all(entry.get("description") for entry in schema["properties"].values())
    assert "from" in schema["$defs"]["LogMelDefinition"]["properties"]
    assert "from_" not in str(schema)
    for name in ("FolderCollection", "ManifestCollection", "GridSettings"):
        assert all(entry["description"] for entry in schema["$defs"][name]["properties"].values())


def test_import_is_light() -> None:
    code = "import sys, pipeline.catalog; sys.exit(bool({'pandas', 'torch', 'dask'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
