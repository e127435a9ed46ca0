"""What a feature is: its kind, its parameters, what it is computed from, and the hash of all that.

A definition is one entry of the catalog. Resolved against the store's grid and its upstream it
becomes a `Feature`, which knows its fingerprint and the shape of its rows, travels to workers, and
is all the store needs to lay out an array.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from features.errors import FeatureInputError, WeightsError
from features.framing import Grid
from pipeline.errors import CatalogError, did_you_mean

if TYPE_CHECKING:
    from features.spectral import LogMelParameters

# 6 dB of headroom: decoded peaks of MP3 and Opus reach 1.1 and must not clip.
AUDIO_SCALE = 1.0 / 16384.0


class _Definition(BaseModel):
    """What every kind has."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    # Raised whenever the same parameters would give other numbers, so that both versions can live side by side.
    algorithm: ClassVar[int] = 1
    inner_dims: ClassVar[tuple[str, ...]] = ()
    byte_shuffle: ClassVar[bool] = False
    rows_per_shard: ClassVar[int] = 256
    upstream_kind: ClassVar[str | None] = None


class AudioDefinition(_Definition):
    """Decoded audio: mean of the channels, resampled (soxr HQ).

    int16 keeps 6 dB of headroom (full scale is 2.0); float32 keeps everything.
    """

    rows_per_shard: ClassVar[int] = 128
    inner_dims: ClassVar[tuple[str, ...]] = ("sample",)

    kind: Literal["audio"]
    sample_rate: Annotated[int, Field(ge=1000, le=384_000)] = 12_000
    dtype: Literal["int16", "float32"] = "int16"


class LogMelDefinition(_Definition):
    """Log-mel spectrogram; see `features.spectral.LogMelParameters`."""

    inner_dims: ClassVar[tuple[str, ...]] = ("mel", "frame")
    upstream_kind: ClassVar[str | None] = "audio"

    kind: Literal["log_mel"]
    from_: str = Field(alias="from")
    n_fft: Annotated[int, Field(ge=2)] = 512
    hop_length: Annotated[int, Field(ge=1)] = 256
    window: Literal["hamming", "hann"] = "hamming"
    n_mels: Annotated[int, Field(ge=1, le=4096)] = 96
    fmin: Annotated[float, Field(ge=0)] = 0.0
    fmax: Annotated[float, Field(gt=0)] | None = None
    htk: bool = True
    norm: Literal["slaney"] | None = None
    exponent: Annotated[float, Field(gt=0)] = 1.0
    log: Literal["ln", "db"] = "ln"
    floor: Annotated[float, Field(gt=0)] = 1e-10
    top_db: Annotated[float, Field(gt=0)] | None = None
    dtype: Literal["float16", "float32"] = "float16"


class MfccDefinition(_Definition):
    """Mel-frequency cepstral coefficients: orthonormal DCT-II of a log-mel spectrogram."""

    inner_dims: ClassVar[tuple[str, ...]] = ("coefficient", "frame")
    byte_shuffle: ClassVar[bool] = True
    upstream_kind: ClassVar[str | None] = "log_mel"

    kind: Literal["mfcc"]
    from_: str = Field(alias="from")
    n_mfcc: Annotated[int, Field(ge=1)] = 90
    dtype: Literal["float16", "float32"] = "float16"


class CnnDefinition(_Definition):
    """One embedding a chunk from a network of the Choi family; see `features.cnn`."""

    rows_per_shard: ClassVar[int] = 1024
    inner_dims: ClassVar[tuple[str, ...]] = ("dimension",)
    upstream_kind: ClassVar[str | None] = "log_mel"

    kind: Literal["cnn"]
    from_: str = Field(alias="from")
    variant: Literal["thesis", "choi2016", "jamendo_fcn"] = "thesis"
    weights: str = "random:0"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32"] = "float32"


FeatureDefinition = Annotated[
    AudioDefinition | LogMelDefinition | MfccDefinition | CnnDefinition, Field(discriminator="kind")
]
EMBEDDING_DIMENSIONS = {"thesis": 1024, "choi2016": 256, "jamendo_fcn": 64}


@dataclass(frozen=True, slots=True)
class Feature:
    """A definition in its place: named, resolved against its upstream and the store's grid.

    Parameters
    ----------
    name
        What the catalog calls it.
    definition
        Kind and parameters.
    upstream
        Name of the feature it is computed from; None for audio.
    fingerprint
        12 hex digits, a hash of the kind, its algorithm version, every parameter, the content of
        weight files, and the fingerprint of the upstream.
    row_shape
        Shape of one chunk.
    dims
        Names of the axes, the chunk axis first.
    """

    name: str
    definition: AudioDefinition | LogMelDefinition | MfccDefinition | CnnDefinition
    upstream: str | None
    fingerprint: str
    row_shape: tuple[int, ...]
    dims: tuple[str, ...]
    grid: Grid = field(repr=False)

    @property
    def kind(self) -> str:
        """Kind of the definition."""
        return self.definition.kind

    @property
    def array_name(self) -> str:
        """Name of its array in a part."""
        return f"{self.name}@{self.fingerprint}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""
        return np.dtype(self.definition.dtype)

    @property
    def scale(self) -> float | None:
        """Factor from stored integers to values; None where values are stored as they are."""
        return AUDIO_SCALE if self.definition.dtype == "int16" else None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row before compression."""
        return int(np.prod(self.row_shape)) * self.dtype.itemsize

    def stored(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Return values as they are stored: rounded to the feature's type."""
        if self.scale is None:
            return values.astype(self.dtype, copy=False)
        scaled = values * np.float32(1.0 / self.scale)
        np.rint(scaled, out=scaled)
        np.clip(scaled, -32768, 32767, out=scaled)
        return scaled.astype(np.int16)

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return stored numbers as float32 values."""
        out = stored.astype(np.float32, copy=False)
        if self.scale is not None:
            out *= np.float32(self.scale)
        return out

    def parameters(self) -> dict[str, Any]:
        """Return the definition as the catalog would write it."""
        return self.definition.model_dump(by_alias=True)


@lru_cache(maxsize=64)
def _file_digest(path: str, _size: int, _mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_identity(weights: str, variant: str) -> str:
    """Return what of a weights source decides the numbers: a seed's recipe, or contents of files.

    Raises
    ------
    WeightsError
        If it is none, as far as can be told without fetching or reading weights.
    """
    from features.downloads import PUBLISHED
    from features.statistics import RANDOM_RECIPE, statistics_digest
    from features.weight_sources import KERAS, SEED, check_published, seed_of

    if weights.startswith(SEED):
        seed_of(weights)
        return f"{weights}/{RANDOM_RECIPE}"
    # Keras files have no statistics of their own: those shipped with the package are put in.
    if weights in PUBLISHED:
        check_published(weights, variant)
        name, digest = PUBLISHED[weights].file_name, PUBLISHED[weights].sha256
    else:
        name, digest = weights, _content_digest(weights)
    return digest + (statistics_digest(variant) if name.endswith(KERAS) else "")


def _content_digest(weights: str) -> str:
    """SHA-256 of a file of weights."""
    from features.downloads import PUBLISHED
    from features.weight_sources import check_suffix

    path = Path(weights)
    try:
        stat = path.stat()
        check_suffix(path)
        return _file_digest(str(path), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        hint = did_you_mean(weights, PUBLISHED) or (
            f" Use random:<seed>, a file, or one of {', '.join(sorted(PUBLISHED))}."
        )
        raise WeightsError(f"{weights!r}: {error.strerror or 'cannot be read'}.{hint}") from error


def _fingerprint(name: str, definition: _Definition, upstream: Feature | None, grid: Grid) -> str:
    identity: dict[str, Any] = definition.model_dump(exclude={"from_", "device"})
    identity["algorithm"] = definition.algorithm
    if isinstance(definition, CnnDefinition):
        try:
            identity["weights"] = _weights_identity(definition.weights, definition.variant)
        except WeightsError as error:
            raise CatalogError(f"features.{name}.weights: {error}") from error
    if upstream is None:
        identity["grid"] = [grid.hop_length, grid.frames_per_chunk, grid.min_tail_s]
    else:
        identity["from"] = upstream.fingerprint
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _row_shape(definition: _Definition, upstream: Feature | None, grid: Grid) -> tuple[int, ...]:
    match definition:
        case AudioDefinition():
            return (grid.chunk_samples,)
        case LogMelDefinition():
            return (definition.n_mels, grid.frames_per_chunk)
        case MfccDefinition():
            return (definition.n_mfcc, grid.frames_per_chunk)
        case CnnDefinition():
            return (EMBEDDING_DIMENSIONS[definition.variant],)
        case _:
            raise TypeError(type(definition).__name__)


def _check(name: str, definition: Any, upstream: Feature | None, grid: Grid) -> None:
    """Raise for parameters that are each in range but do not fit together."""
    if isinstance(definition, AudioDefinition):
        return
    if upstream is None or upstream.kind != definition.upstream_kind:
        got = f"{upstream.name!r}, which is {upstream.kind}" if upstream else "nothing"
        raise CatalogError(
            f"features.{name}.from: {definition.kind} is computed from a feature of kind "
            f"{definition.upstream_kind}, got {got}."
        )
    if isinstance(definition, LogMelDefinition):
        if definition.hop_length != grid.hop_length:
            raise CatalogError(
                f"features.{name}.hop_length: must be the grid's hop, {grid.hop_length} samples, "
                f"got {definition.hop_length}. Another hop is another store."
            )
        try:
            log_mel_parameters(definition, grid)
        except FeatureInputError as error:
            raise CatalogError(f"features.{name}: {error}") from error
    elif isinstance(definition, MfccDefinition) and definition.n_mfcc > upstream.row_shape[0]:
        raise CatalogError(
            f"features.{name}.n_mfcc: must be at most the {upstream.row_shape[0]} bands of "
            f"{upstream.name!r}, got {definition.n_mfcc}."
        )
    elif isinstance(definition, CnnDefinition) and upstream.row_shape != (96, 1366):
        raise CatalogError(
            f"features.{name}.from: the networks read 96 bands x 1366 frames, "
            f"{upstream.name!r} has {upstream.row_shape[0]} x {upstream.row_shape[1]}."
        )


def log_mel_parameters(definition: LogMelDefinition, grid: Grid) -> "LogMelParameters":
    """Return the signal parameters of a log-mel definition on a grid."""
    from features.spectral import LogMelParameters  # scipy.fft, which a plan does not need

    return LogMelParameters(
        sample_rate=grid.sample_rate, **definition.model_dump(exclude={"kind", "from_", "dtype"})
    )


def resolve(definitions: Mapping[str, Any], grid: Grid) -> dict[str, Feature]:
    """Resolve definitions against one another, upstream first.

    Parameters
    ----------
    definitions
        Definitions by name, in any order.
    grid
        The store's grid.

    Returns
    -------
    dict
        Features by name, each after what it is computed from.

    Raises
    ------
    CatalogError
        If a name does not exist, definitions form a circle, parameters do not fit together, or weights
        cannot be what they are said to be.
    """
    resolved: dict[str, Feature] = {}

    def add(name: str, below: tuple[str, ...]) -> Feature:
        if name in resolved:
            return resolved[name]
        definition = definitions[name]
        upstream_name = getattr(definition, "from_", None)
        upstream = None
        if upstream_name is not None:
            if upstream_name not in definitions:
                raise CatalogError(
                    f"features.{name}.from: there is no feature {upstream_name!r}."
                    f"{did_you_mean(upstream_name, definitions)}"
                )
            if upstream_name in (*below, name):
                raise CatalogError(
                    f"features.{name}.from: {' -> '.join((*below, name, upstream_name))} is a circle."
                )
            upstream = add(upstream_name, (*below, name))
        _check(name, definition, upstream, grid)
        resolved[name] = Feature(
            name=name,
            definition=definition,
            upstream=upstream_name,
            fingerprint=_fingerprint(name, definition, upstream, grid),
            row_shape=_row_shape(definition, upstream, grid),
            dims=("chunk", *definition.inner_dims),
            grid=grid,
        )
        return resolved[name]

    for name in definitions:
        add(name, ())
    return resolved
