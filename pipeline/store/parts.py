"""Parts: immutable Zarr groups, each written by one job and named by the index once it is complete.

    <store>/parts/<part>/
        zarr.json             group; attributes: the tracks as named when written, the SHA-256 of their files
        start_s, valid_frames, track_number    (chunk,) coordinates
        frame                 (frame,) seconds from the chunk's start
        logmel@<fingerprint>  (chunk, mel, frame), and so on: every array has the same rows

An array that was added to a part later has a name of its own, `logmel@<fingerprint>.<8 digits>`: a job
that outlives its run, on a cluster of others, cannot write into one that a later run makes.

Nothing of a part is visible before the index names it, so a part needs no atomicity of its own; it
must only be durable before the commit.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.framing import Grid
from pipeline.definitions import Feature
from pipeline.errors import CURE, StoreDamagedError
from pipeline.store.location import Location
from pipeline.store.records import ArrayRow
from pipeline.store.shards import ShardedArrayWriter

PARTS = "parts"
COORDINATES = "start_s valid_frames track_number"


def part_key(part: str) -> str:
    """Return the key of a part's folder."""
    return f"{PARTS}/{part}"


def new_part_name() -> str:
    """Return a name no other part has."""
    return uuid.uuid4().hex


def _attributes(feature: Feature) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "feature": feature.name,
        "fingerprint": feature.fingerprint,
        "parameters": feature.parameters(),
        "coordinates": COORDINATES,
        "sample_rate_hz": feature.grid.sample_rate,
    }
    if feature.scale is not None:
        attributes["scale_factor"] = feature.scale
    return attributes


def part_group(location: Location, part: str) -> dict[str, Any]:
    """Return the attributes of a part.

    Raises
    ------
    StoreDamagedError
        If they cannot be read.
    """
    try:
        attributes: dict[str, Any] = json.loads(location.read(f"{part_key(part)}/zarr.json"))["attributes"]
        return attributes
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreDamagedError(
            f"part {part}: cannot be opened ({' '.join(str(error).split())}). {CURE}"
        ) from error


def part_tracks(location: Location, part: str) -> list[tuple[int, int]]:
    """Return first row and number of rows of each track of a part, dead ones too."""
    return [(track["row_start"], track["n_chunks"]) for track in part_group(location, part)["tracks"]]


class PartLayout:
    """What describes the rows of a part: which tracks, and each row's start and valid frames.

    Parameters
    ----------
    grid
        The store's grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._tracks: list[dict[str, Any]] = []
        self._start_s: list[float] = []
        self._valid_frames: list[int] = []
        self._track_number: list[int] = []

    @property
    def n_rows(self) -> int:
        """Rows described so far."""
        return len(self._valid_frames)

    def add_track(
        self, track_id: str, valid_frames: NDArray[np.int32], content_hash: str | None = None
    ) -> int:
        """Describe the next rows, and of which file they are; return the first one's number."""
        first = self.n_rows
        about = {"track_id": track_id, "row_start": first, "n_chunks": len(valid_frames)}
        self._tracks.append(about | ({"content_hash": content_hash} if content_hash else {}))
        self._start_s.extend(index * self._grid.chunk_s for index in range(len(valid_frames)))
        self._valid_frames.extend(int(frames) for frames in valid_frames)
        self._track_number.extend([len(self._tracks) - 1] * len(valid_frames))
        return first

    def write(self, location: Location, part: str) -> None:
        """Write the group and its coordinates."""
        grid, key = self._grid, part_key(part)
        seconds = np.arange(grid.frames_per_chunk) * grid.hop_length / grid.sample_rate
        _write_coordinate(location, f"{key}/start_s", np.array(self._start_s), "chunk", units="s")
        frames, numbers = np.array(self._valid_frames), np.array(self._track_number)
        _write_coordinate(location, f"{key}/valid_frames", frames.astype(np.int32), "chunk")
        _write_coordinate(location, f"{key}/track_number", numbers.astype(np.int32), "chunk")
        _write_coordinate(location, f"{key}/frame", seconds, "frame", units="s")
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"tracks": self._tracks}}
        location.create(f"{key}/zarr.json", json.dumps(group).encode())


def _write_coordinate(
    location: Location, key: str, values: NDArray[Any], dim: str, **attributes: str
) -> None:
    import zarr

    memory: dict[str, Any] = {}
    zarr.create_array(
        store=zarr.storage.MemoryStore(memory),
        data=values,
        chunks=(max(1, len(values)),),
        dimension_names=[dim],
        attributes=dict[str, Any](attributes),
        filters=None,
        compressors=None,
    )
    for name, content in memory.items():
        location.create(f"{key}/{name}", content.to_bytes())


class PartWriter:
    """One job's output: rows of every feature, appended in step.

    Parameters
    ----------
    location
        Of the store.
    features
        Features to write, upstream first.
    computed_with
        Versions and arithmetic of what computes each feature, JSON by name.
    part
        An existing part to add arrays to; None starts a new one.

    Notes
    -----
    As a context manager it removes what it wrote when the block raises.
    """

    def __init__(
        self,
        location: Location,
        features: Sequence[Feature],
        computed_with: Mapping[str, str],
        *,
        part: str | None = None,
    ) -> None:
        self.part = part or new_part_name()
        self._location = location
        self._existing = part is not None
        self._features = list(features)
        self._computed_with = computed_with
        self._layout = PartLayout(self._features[0].grid)
        suffix = f".{uuid.uuid4().hex[:8]}" if self._existing else ""
        self._names = {feature.name: feature.array_name + suffix for feature in self._features}
        taken = _axes(location, self.part) if self._existing else {}
        self._arrays: dict[str, ShardedArrayWriter] = {}
        for feature in self._features:
            dims = _dims(feature, taken)
            taken.update(zip(dims[1:], feature.row_shape, strict=True))
            key = f"{part_key(self.part)}/{self._names[feature.name]}"
            self._arrays[feature.name] = ShardedArrayWriter(
                location, key, feature, dims, _attributes(feature)
            )

    @property
    def n_rows(self) -> int:
        """Rows of the first array so far."""
        return next(iter(self._arrays.values())).n_rows

    def append(self, feature: str, row: NDArray[Any]) -> None:
        """Append one stored row of one feature."""
        self._arrays[feature].append(row)

    def append_nothing(self, n_rows: int) -> None:
        """Append rows that are not there, to every array: those of an erased track."""
        for array in self._arrays.values():
            for _ in range(n_rows):
                array.append_encoded(None)

    def add_track(
        self, track_id: str, valid_frames: NDArray[np.int32], content_hash: str | None = None
    ) -> int:
        """Describe the rows appended since the last track; return the first one's number."""
        return self._layout.add_track(track_id, valid_frames, content_hash)

    def level(self) -> None:
        """Fill arrays that lag behind: rows of a track that failed halfway."""
        n_rows = max(array.n_rows for array in self._arrays.values())
        for array in self._arrays.values():
            while array.n_rows < n_rows:
                array.append_encoded(None)

    def finish(self) -> list[ArrayRow]:
        """Make everything durable and return what the index is to be told.

        Raises
        ------
        StoreWriteError
            If the file system refuses.
        """
        for array in self._arrays.values():
            array.finish()
        rows = {array.n_rows for array in self._arrays.values()}
        if not self._existing:
            rows.add(self._layout.n_rows)
            self._layout.write(self._location, self.part)
        if len(rows) != 1:
            raise StoreDamagedError(
                f"part {self.part}: arrays have {sorted(rows)} rows, expected one number."
            )
        self._location.sync(part_key(self.part))
        return [self._array_row(feature, self._arrays[feature.name]) for feature in self._features]

    def _array_row(self, feature: Feature, array: ShardedArrayWriter) -> ArrayRow:
        return ArrayRow(
            part=self.part,
            feature=feature.name,
            fingerprint=feature.fingerprint,
            kind=feature.kind,
            array=self._names[feature.name],
            rows=array.n_rows,
            bytes=array.n_bytes,
            dtype=str(feature.dtype),
            row_shape=json.dumps(feature.row_shape),
            parameters=json.dumps(feature.parameters(), sort_keys=True),
            computed_with=self._computed_with[feature.name],
        )

    def abandon(self) -> None:
        """Remove what was written."""
        for array in self._arrays.values():
            array.abandon()
        if not self._existing:
            self._location.delete(part_key(self.part))
            return
        for name in self._names.values():
            self._location.delete(f"{part_key(self.part)}/{name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abandon()
            return
        for array in self._arrays.values():
            array.abandon()


def _axes(location: Location, part: str) -> dict[str, int]:
    """Return names and lengths of the axes that the arrays of a part have."""
    taken: dict[str, int] = {}
    for name in location.names(part_key(part)):
        if "@" not in name:
            continue
        try:
            known = json.loads(location.read(f"{part_key(part)}/{name}/zarr.json"))
        except (FileNotFoundError, ValueError):  # left by a killed run
            continue
        taken.update(zip(known["dimension_names"][1:], known["shape"][1:], strict=True))
    return taken


def _dims(feature: Feature, taken: Mapping[str, int]) -> tuple[str, ...]:
    """Return axis names that clash with no other array of the part: ``mel``, else ``mel_128``."""
    return (
        "chunk",
        *(
            dim if taken.get(dim, size) == size else f"{dim}_{size}"
            for dim, size in zip(feature.dims[1:], feature.row_shape, strict=True)
        ),
    )
