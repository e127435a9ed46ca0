"""Many tracks at once: every chunk of a selection in a table, and lazy arrays over it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.shard_reader import ShardReader, StoredRows

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    from pipeline.store.stored_feature import StoredFeature


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Chunks of some tracks: where each lies and what it is.

    In stored order (by part, then row) the chunks of one shard are neighbours, so that reading them in turn
    reads the disk in turn.

    Parameters
    ----------
    track_ids
        Identifiers; `track` counts into them.
    parts
        Names; `part` counts into them.
    part, row
        (chunk,) int32: where the chunk lies.
    track, chunk
        (chunk,) int32: whose it is, and the how manieth.
    valid_frames
        (chunk,) int32: frames that are not padding.
    """

    track_ids: "pd.Index[str]"
    parts: tuple[str, ...]
    part: NDArray[np.int32]
    row: NDArray[np.int32]
    track: NDArray[np.int32]
    chunk: NDArray[np.int32]
    valid_frames: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.row)

    def taken(self, where: NDArray[Any]) -> "ChunkTable":
        """Return some of the chunks, by a mask or by numbers."""
        return ChunkTable(
            self.track_ids,
            self.parts,
            self.part[where],
            self.row[where],
            self.track[where],
            self.chunk[where],
            self.valid_frames[where],
        )

    def in_track_order(self) -> "ChunkTable":
        """Return the chunks sorted by track, then time."""
        return self.taken(np.lexsort((self.chunk, self.track)))

    def blocks(self, rows_per_shard: int) -> NDArray[np.int64]:
        """Return bounds of stretches of chunks that lie in one shard, in order.

        Returns
        -------
        (block + 1,) int64
            Block i is chunks [bounds[i], bounds[i + 1]).
        """
        if not len(self):
            return np.zeros(1, dtype=np.int64)
        shard = self.row // rows_per_shard
        new = (np.diff(self.part) != 0) | (np.diff(shard) != 0)
        return np.concatenate([[0], np.flatnonzero(new) + 1, [len(self)]]).astype(np.int64)

    def track_blocks(self) -> NDArray[np.int64]:
        """Return bounds of stretches of chunks of one track, in order; as `blocks`."""
        if not len(self):
            return np.zeros(1, dtype=np.int64)
        return np.concatenate([[0], np.flatnonzero(np.diff(self.track)) + 1, [len(self)]]).astype(np.int64)

    def to_frame(self) -> pd.DataFrame:
        """Return the table with names: `track_id`, `chunk`, `valid_frames`, `part`, `row`."""
        return pd.DataFrame(
            {
                "track_id": self.track_ids.to_numpy()[self.track],
                "chunk": self.chunk,
                "valid_frames": self.valid_frames,
                "part": np.array(self.parts, dtype=object)[self.part],
                "row": self.row,
            }
        )


def chunk_table(features: Sequence["StoredFeature"]) -> ChunkTable:
    """Return every chunk of the tracks that have all of some features, in stored order.

    Parameters
    ----------
    features
        Of one store.
    """
    store = features[0].store
    spans = store.spans
    parts, codes = np.unique(spans.part.astype(str), return_inverse=True)
    has = np.array([all(feature.has_part(part) for feature in features) for part in parts], dtype=bool)
    where = np.flatnonzero(has[codes]) if len(spans) else np.zeros(0, dtype=np.int64)
    where = where[np.lexsort((spans.row_start[where], codes[where]))]
    counts = spans.n_chunks[where]
    chunk = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    grid = store.grid
    # As `Grid.valid_frames`, of all tracks at once: a million calls take seconds.
    valid_frames = np.full(len(chunk), grid.frames_per_chunk, dtype=np.int32)
    some = counts > 0
    rest = spans.n_samples[where] - (counts - 1) * grid.chunk_samples
    last_frames = np.minimum(grid.frames_per_chunk, rest // grid.hop_length + 1)
    valid_frames[np.cumsum(counts)[some] - 1] = last_frames[some]
    return ChunkTable(
        track_ids=spans.track_ids,
        parts=tuple(str(part) for part in parts),
        part=np.repeat(codes[where], counts).astype(np.int32),
        row=(np.repeat(spans.row_start[where], counts) + chunk).astype(np.int32),
        track=np.repeat(where, counts).astype(np.int32),
        chunk=chunk.astype(np.int32),
        valid_frames=valid_frames,
    )


def runs(row: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Return stretches [start, stop) of a column of rows that follow each other."""
    bounds = [0, *(np.flatnonzero(np.diff(row) != 1) + 1).tolist(), len(row)]
    return ((start, stop) for start, stop in pairwise(bounds) if stop > start)


def read_chunks(
    rows: StoredRows, table: ChunkTable, start: int, stop: int, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return chunks [start, stop) of a table as stored, (chunk, ...).

    Parameters
    ----------
    rows
        What to read.
    table
        Chunks of the same store.
    start, stop
        Numbers in the table.
    out
        Where to put them; made if None.

    Raises
    ------
    StoreDamagedError
        If a checksum does not match.
    """
    if out is None:
        out = np.empty((stop - start, *rows.row_shape), dtype=rows.dtype)
    part = table.part[start:stop]
    bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
    for first, last in pairwise(bounds):
        if first == last:
            continue
        reader = rows.reader(table.parts[part[first]])
        _read_rows(reader, table.row[start + first : start + last], out[first:last])
    return out


def _read_rows(reader: ShardReader, numbers: NDArray[np.int32], out: NDArray[Any]) -> None:
    for begin, end in runs(numbers):
        reader.rows(int(numbers[begin]), int(numbers[end - 1]) + 1, out[begin:end])


def dask_array(rows: StoredRows, table: ChunkTable, *, by_track: bool = False) -> "da.Array":
    """Return a table's chunks as a dask array of the stored type.

    Parameters
    ----------
    rows
        What to read.
    table
        Chunks of the same store.
    by_track
        Make each track a block; else stretches of one shard, which are the shards where the table is in
        stored order.
    """
    import dask.array as da
    from dask.task_spec import Task
    from dask.tokenize import tokenize

    if not len(table):
        empty: da.Array = da.from_array(np.empty((0, *rows.row_shape), dtype=rows.dtype), chunks=-1)
        return empty
    if by_track:
        bounds = table.track_blocks()
    else:
        bounds = table.blocks(rows.reader(table.parts[table.part[0]]).rows_per_shard)
    # A task goes to its worker by itself: it carries what its block needs, not the table.
    of_part = {
        part: StoredRows(rows.location, {part: rows.arrays[part]}, rows.row_shape, rows.dtype)
        for part in (table.parts[number] for number in np.unique(table.part))
    }
    arrays = [(part, rows.arrays[part]) for part in of_part]
    name = f"chunks-{tokenize(rows.location.url, arrays, table.part, table.row, bounds, rows.row_shape)}"
    graph = {}
    for block, (start, stop) in enumerate(pairwise(bounds.tolist())):
        key = (name, block, *[0] * len(rows.row_shape))
        part = table.parts[table.part[start]]
        graph[key] = Task(key, _block, of_part[part], part, table.row[start:stop])
    array: da.Array = da.Array(
        graph,
        name,
        chunks=(tuple(np.diff(bounds).tolist()), *((length,) for length in rows.row_shape)),
        meta=np.empty((0, *rows.row_shape), dtype=rows.dtype),
    )
    return array


def _block(rows: StoredRows, part: str, numbers: NDArray[np.int32]) -> NDArray[Any]:
    out = np.empty((len(numbers), *rows.row_shape), dtype=rows.dtype)
    _read_rows(rows.reader(part), numbers, out)
    return out


def shared_dims(features: Sequence["StoredFeature"]) -> list[tuple[str, ...]]:
    """Return names of axes that several features can share: ``mel``, and ``mel_128`` where lengths differ."""
    sizes: dict[str, int] = {}
    named = []
    for feature in features:
        dims = tuple(
            dim if sizes.get(dim, size) == size else f"{dim}_{size}"
            for dim, size in zip(feature.dims[1:], feature.row_shape, strict=True)
        )
        sizes.update(zip(dims, feature.row_shape, strict=True))
        named.append(("chunk", *dims))
    return named


def chunk_dataset(features: Mapping[str, "StoredFeature"]) -> "xr.Dataset":
    """Return several features of all tracks that have them as one lazy dataset in stored order.

    Parameters
    ----------
    features
        By the name each gets.

    Raises
    ------
    StoreError
        If no features are named.
    """
    import xarray as xr

    if not features:
        raise StoreError("name at least one feature.")
    named = list(features.values())
    table = chunk_table(named)
    grid = named[0].store.grid
    variables: dict[str, Any] = {}
    for (name, feature), dims in zip(features.items(), shared_dims(named), strict=True):
        attributes = {"fingerprint": feature.fingerprint, "parameters": str(feature.parameters)}
        variables[name] = (dims, dask_array(feature.rows, table), attributes)
    track_ids = table.track_ids.to_numpy()[table.track].astype(str)
    return xr.Dataset(
        variables,
        coords={
            "track_id": ("chunk", track_ids),
            "start_s": ("chunk", table.chunk * grid.chunk_s, {"units": "s"}),
            "valid_frames": ("chunk", table.valid_frames),
        },
    )
