"""Parts: immutable Zarr groups, each written by one job and named by the index once it is complete.

    <store>/parts/<part>/
        zarr.json             group; attributes name the tracks as they were when written
        start_s, valid_frames, track_number    (chunk,) coordinates
        frame                 (frame,) seconds from the chunk's start
        logmel@<fingerprint>  (chunk, mel, frame), and so on: every array has the same rows

Nothing of a part is visible before the index names it, so a part needs no atomicity of its own; it
must only be on disk before the commit.
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from features.framing import Grid
from pipeline.definitions import Feature
from pipeline.errors import StoreDamagedError
from pipeline.store.files import sync_folder, synced_write, writing
from pipeline.store.records import ArrayRow
from pipeline.store.shards import ShardedArrayWriter

PARTS = "parts"
COORDINATES = "start_s valid_frames track_number"


def part_folder(store: Path, part: str) -> Path:
    """Return the folder of a part."""
    return store / PARTS / part


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


def _dims(folder: Path, feature: Feature, siblings: Sequence[Feature]) -> tuple[str, ...]:
    """Return axis names that clash with no other array of the part: ``mel``, else ``mel_128``."""
    taken = {
        dim: size
        for other in siblings
        if other.fingerprint != feature.fingerprint
        for dim, size in zip(other.dims[1:], other.row_shape, strict=True)
    }
    for metadata in folder.glob("*@*/zarr.json"):
        known = json.loads(metadata.read_bytes())
        taken.update(zip(known["dimension_names"][1:], known["shape"][1:], strict=True))
    return (
        "chunk",
        *(
            dim if taken.get(dim, size) == size else f"{dim}_{size}"
            for dim, size in zip(feature.dims[1:], feature.row_shape, strict=True)
        ),
    )


def _write_coordinate(folder: Path, name: str, values: NDArray[Any], dim: str, **attributes: str) -> None:
    with writing(folder):
        array = zarr.create_array(
            store=zarr.storage.LocalStore(folder / name),
            data=values,
            chunks=(max(1, len(values)),),
            dimension_names=[dim],
            attributes=dict[str, Any](attributes),
            filters=None,
            compressors=None,
        )
    del array


class PartWriter:
    """One job's output: rows of every feature, appended in step.

    Parameters
    ----------
    store
        Folder of the store.
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
        store: Path,
        features: Sequence[Feature],
        computed_with: Mapping[str, str],
        *,
        part: str | None = None,
    ) -> None:
        self.part = part or new_part_name()
        self.folder = part_folder(store, self.part)
        self._existing = part is not None
        self._features = list(features)
        self._computed_with = computed_with
        self._tracks: list[dict[str, Any]] = []
        self._start_s: list[float] = []
        self._valid_frames: list[int] = []
        self._track_number: list[int] = []
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=self._existing)
        # Arrays added to a part are written under names of their own until they are whole: a job that
        # outlives its run, on a cluster of others, cannot write into one that a later run makes.
        draft = f".{uuid.uuid4().hex[:8]}" if self._existing else ""
        self._drafts = {f.name: self.folder / f"{draft}{f.array_name}" for f in self._features}
        self._arrays = {
            feature.name: ShardedArrayWriter(
                self._drafts[feature.name],
                feature,
                _dims(self.folder, feature, self._features[:index]),
                _attributes(feature),
            )
            for index, feature in enumerate(self._features)
        }

    @property
    def n_rows(self) -> int:
        """Rows of the first array so far."""
        return next(iter(self._arrays.values())).n_rows

    def append(self, feature: str, row: NDArray[Any]) -> None:
        """Append one stored row of one feature."""
        self._arrays[feature].append(row)

    def add_track(self, track_id: str, valid_frames: NDArray[np.int32], grid: Grid) -> int:
        """Describe the rows appended since the last track; return the first one's number."""
        first = len(self._valid_frames)
        self._tracks.append({"track_id": track_id, "row_start": first, "n_chunks": len(valid_frames)})
        self._start_s.extend(index * grid.chunk_s for index in range(len(valid_frames)))
        self._valid_frames.extend(int(frames) for frames in valid_frames)
        self._track_number.extend([len(self._tracks) - 1] * len(valid_frames))
        return first

    def level(self) -> None:
        """Fill arrays that lag behind with zeros: rows of a track that failed halfway."""
        n_rows = max(array.n_rows for array in self._arrays.values())
        for array in self._arrays.values():
            while array.n_rows < n_rows:
                array.append(np.zeros(array.feature.row_shape, dtype=array.feature.dtype))

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
            rows.add(len(self._valid_frames))
            self._write_group()
        if len(rows) != 1:
            raise StoreDamagedError(
                f"part {self.part}: arrays have {sorted(rows)} rows, expected one number."
            )
        with writing(self.folder):
            for folder, _, names in os.walk(self.folder, topdown=False):
                for name in names:
                    if not self._existing and "@" not in folder and name != "zarr.json":
                        _sync_file(Path(folder, name))
                sync_folder(Path(folder))
            sync_folder(self.folder.parent)
        if self._existing:
            with writing(self.folder):
                for feature in self._features:
                    final = self.folder / feature.array_name
                    shutil.rmtree(final, ignore_errors=True)  # what a killed run left, which no commit names
                    self._drafts[feature.name].rename(final)
                sync_folder(self.folder)
        return [self._array_row(feature, self._arrays[feature.name]) for feature in self._features]

    def _write_group(self) -> None:
        grid = self._features[0].grid
        _write_coordinate(self.folder, "start_s", np.array(self._start_s), "chunk", units="s")
        _write_coordinate(self.folder, "valid_frames", np.array(self._valid_frames, dtype=np.int32), "chunk")
        _write_coordinate(self.folder, "track_number", np.array(self._track_number, dtype=np.int32), "chunk")
        seconds = np.arange(grid.frames_per_chunk) * grid.hop_length / grid.sample_rate
        _write_coordinate(self.folder, "frame", seconds, "frame", units="s")
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"tracks": self._tracks}}
        synced_write(self.folder / "zarr.json", json.dumps(group).encode())

    def _array_row(self, feature: Feature, array: ShardedArrayWriter) -> ArrayRow:
        return ArrayRow(
            part=self.part,
            feature=feature.name,
            fingerprint=feature.fingerprint,
            kind=feature.kind,
            array=feature.array_name,
            rows=array.n_rows,
            bytes=array.n_bytes,
            dtype=str(feature.dtype),
            row_shape=json.dumps(feature.row_shape),
            parameters=json.dumps(feature.parameters(), sort_keys=True),
            computed_with=self._computed_with[feature.name],
        )

    def abandon(self) -> None:
        """Remove what was written."""
        if self._existing:
            for draft in self._drafts.values():
                shutil.rmtree(draft, ignore_errors=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self._arrays.values():
            array.__exit__(kind, error, trace)
        if error is not None:
            self.abandon()


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_array(store: Path, part: str, array: str) -> "zarr.Array[Any]":
    """Open one array of a part for reading, by zarr-python.

    Not by zarrs: of a shard that it does not decode as a whole (the last of an array never is) it skips
    the rows' crc32c, so that flipped bytes are silently wrong.

    Raises
    ------
    StoreDamagedError
        If it is not there or its metadata cannot be read.
    """
    folder = part_folder(store, part) / array
    try:
        return zarr.open_array(zarr.storage.LocalStore(folder, read_only=True), mode="r")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamagedError(f"part {part}, array {array}: cannot be opened ({error}).") from error


def read_rows(array: "zarr.Array[Any]", start: int, stop: int, *, part: str, name: str) -> NDArray[Any]:
    """Return rows [start, stop) as stored, their checksums verified.

    Raises
    ------
    StoreDamagedError
        If a checksum does not match or rows are missing.
    """
    if not 0 <= start <= stop <= array.shape[0]:
        raise StoreDamagedError(
            f"part {part}, array {name}: rows {start} to {stop} were expected, it has {array.shape[0]}."
        )
    try:
        if start < stop:
            _check_shards_exist(array, start, stop)
        return np.asarray(array[start:stop])
    except (RuntimeError, ValueError, OSError) as error:
        what = "a checksum does not match" if "checksum" in str(error) else " ".join(str(error).split())
        raise StoreDamagedError(
            f"part {part}, array {name}: rows {start} to {stop} are damaged ({what}). "
            "Restore the part from a backup."
        ) from error


def _check_shards_exist(array: "zarr.Array[Any]", start: int, stop: int) -> None:
    """Raise for a shard that is not there: Zarr would give zeros for its rows."""
    store = array.store
    if not isinstance(store, zarr.storage.LocalStore) or array.shards is None:
        return
    for number in range(start // array.shards[0], (stop - 1) // array.shards[0] + 1):
        shard = store.root.joinpath("c", str(number), *["0"] * (array.ndim - 1))
        if not shard.exists():
            raise FileNotFoundError(f"shard {number} is missing")
