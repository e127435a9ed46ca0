"""Verification: everything is read again and compared with its checksums and with the index."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from pipeline.errors import CURE, StoreDamagedError
from pipeline.store.erasures import erased_spans, unerased
from pipeline.store.index import Index
from pipeline.store.parts import COORDINATES, part_group, part_key
from pipeline.store.places import Place, store_at
from pipeline.store.shard_reader import ShardReader

ROWS_PER_READ = 64
_OF_TRACKS = ["track_id", "part", "row_start", "n_chunks", "n_samples"]
_OF_ARRAYS = ["part", "array", "fingerprint", "rows", "bytes", "row_shape", "dtype"]
COLUMNS = ["part", "array", "track_ids", "tracks", "problem"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Parameters
    ----------
    problems
        `part`, `array` (None for the part as a whole), `track_ids` (list: whose rows are concerned), `tracks`
        (how many these are) and `problem`, one line.
    tracks, parts, arrays, rows, bytes
        How much was looked at; tracks that have features, and bytes as stored, as ``mirstore status`` counts them.
    """

    problems: pd.DataFrame
    tracks: int
    parts: int
    arrays: int
    rows: int
    bytes: int

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not len(self.problems)


@dataclass(frozen=True, slots=True)
class _Problem:
    part: str | None
    array: str | None
    problem: str
    track_ids: tuple[str, ...] | None = None  # None: all of the part


def verify(
    place: Place,
    *,
    snapshot: int | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> VerifyReport:
    """Read every row of every array, and compare the index with the parts.

    Nothing is locked: what a running extraction adds meanwhile is not looked at.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    snapshot
        Which commit; None is the newest.
    on_progress
        Called with bytes done and bytes in all.

    Returns
    -------
    VerifyReport

    Raises
    ------
    StoreMissingError, StoreFormatError, StoreDamagedError
        If the index itself cannot be read.
    """
    index = Index(store_at(place), snapshot)
    erased = erased_spans(index.location)
    tracks, arrays = index.tracks(_OF_TRACKS), index.arrays(_OF_ARRAYS)
    tracks = unerased(tracks, erased) if erased else tracks
    placed = _Placed(tracks[tracks["part"].notna()])
    problems = list(_problems_of_index(index, tracks, arrays))
    done, total = 0, int(arrays["bytes"].sum())
    arrays = arrays.sort_values("part", kind="stable")
    checks: Iterator[_Check] = itertools.chain(
        (
            (row.bytes, partial(_problem_of_array, index, row, placed))
            for row in arrays.itertuples(index=False)
        ),
        ((0, partial(_problem_of_part, index, part, placed)) for part in arrays["part"].unique()),
    )
    for n_bytes, problem in _done(checks):
        done += n_bytes
        on_progress(done, total)
        if problem is not None:
            problems.append(problem)
    problems.sort(key=lambda problem: (problem.part or "", problem.array or ""))
    table = pd.DataFrame(
        [(p.part, p.array, names := _affected(p, placed), len(names), p.problem) for p in problems],
        columns=COLUMNS,
        dtype=object,  # what is None stays so
    )
    return VerifyReport(
        problems=table.astype({"tracks": int}),
        tracks=len(placed),
        parts=int(arrays["part"].nunique()),
        arrays=len(arrays),
        rows=int(arrays["rows"].sum()),
        bytes=total,
    )


class _Placed:
    """Tracks that have rows, by part: a frame for each of many parts would take gigabytes."""

    def __init__(self, tracks: pd.DataFrame) -> None:
        self._tracks = tracks
        self._numbers = tracks.groupby("part").indices

    def __len__(self) -> int:
        return len(self._tracks)

    def of(self, part: str | None) -> pd.DataFrame:
        """Return the tracks of a part."""
        return self._tracks.iloc[self._numbers.get(part, [])]


_Check = tuple[int, Callable[[], _Problem | None]]


def _done(checks: Iterator[_Check]) -> Iterator[tuple[int, _Problem | None]]:
    """Return bytes and outcome of each check, made with a thread a core; few of them wait at a time."""
    n_threads = max(1, os.cpu_count() or 1)
    with ThreadPoolExecutor(n_threads) as pool:
        bytes_of: dict[Future[_Problem | None], int] = {}
        while True:
            for n_bytes, check in itertools.islice(checks, 4 * n_threads - len(bytes_of)):
                bytes_of[pool.submit(check)] = n_bytes
            if not bytes_of:
                return
            for check_done in wait(bytes_of, return_when=FIRST_COMPLETED).done:
                yield bytes_of.pop(check_done), check_done.result()


def _affected(problem: _Problem, placed: _Placed) -> list[str]:
    if problem.track_ids is not None:
        return sorted(problem.track_ids)
    return sorted(placed.of(problem.part)["track_id"])


def _problem_of_array(index: Index, row: Any, placed: _Placed) -> _Problem | None:
    """Read all rows of an array, a row of the table of arrays; return what is wrong."""
    part, array, tracks = row.part, row.array, placed.of(row.part)
    try:
        reader = ShardReader(index.location, part, array)
        expected = (row.rows, tuple(json.loads(row.row_shape)), np.dtype(row.dtype))
        found = (reader.n_rows, reader.row_shape, reader.dtype)
        if found != expected:
            return _Problem(part, array, f"the index says {_form(*expected)}, the part has {_form(*found)}")
        owned = np.zeros(reader.n_rows, dtype=bool)
        for start, count in _row_ranges(tracks):
            owned[start : start + count] = True
        bad = list(_bad_rows(reader, owned))
        if bad:
            more = f" ({len(bad)} such rows in all)" if len(bad) > 1 else ""
            names = tuple(_tracks_of([row for row, _ in bad], tracks))
            return _Problem(part, array, bad[0][1] + more, names)
    except StoreDamagedError as error:
        return _Problem(part, array, _reason(error))
    return None


def _bad_rows(reader: ShardReader, owned: NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
    """Return rows that cannot be read, and those of tracks that are not there, each with the reason."""
    out = np.empty((1, *reader.row_shape), dtype=reader.dtype)
    for start in range(0, reader.n_rows, ROWS_PER_READ):
        rows = range(start, min(reader.n_rows, start + ROWS_PER_READ))
        try:
            contents = reader.encoded(rows.start, rows.stop)
        except StoreDamagedError:  # which of them?
            contents = None
        for i, row in enumerate(rows):
            try:
                encoded = reader.encoded(row, row + 1)[0] if contents is None else contents[i]
                if encoded is not None:
                    reader.decode(encoded, out, row)
                elif owned[row]:
                    yield row, f"row {row} of a track is not there"
            except StoreDamagedError as error:
                yield row, _reason(error)


def _tracks_of(rows: list[int], tracks: pd.DataFrame) -> Iterator[str]:
    """Return the tracks to which rows belong."""
    for track_id, (start, count) in zip(tracks["track_id"], _row_ranges(tracks), strict=True):
        if any(start <= row < start + count for row in rows):
            yield track_id


def _form(rows: int, row_shape: tuple[int, ...], dtype: "np.dtype[Any]") -> str:
    return f"{' x '.join(map(str, (rows, *row_shape)))} {dtype}"


def _reason(error: StoreDamagedError) -> str:
    """Return an error's text without the name of the array, which has a column of its own, and the cure."""
    return (str(error).partition(": ")[2] or str(error)).removesuffix(f" {CURE}")


def _row_ranges(tracks: pd.DataFrame) -> Iterator[tuple[int, int]]:
    for start, count in zip(tracks["row_start"], tracks["n_chunks"], strict=True):
        yield int(start), int(count)


def _problem_of_part(index: Index, part: str, placed: _Placed) -> _Problem | None:
    """Compare a part's own description of its rows with the index."""
    try:
        described = {(t["row_start"], t["n_chunks"]) for t in part_group(index.location, part)["tracks"]}
        coordinates = {
            name: zarr.open_array(index.location.zarr(f"{part_key(part)}/{name}"), mode="r")[:]
            for name in (*COORDINATES.split(), "frame")
        }
    except StoreDamagedError as error:
        return _Problem(part, None, _reason(error))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return _Problem(part, None, f"its coordinates cannot be read ({' '.join(str(error).split())})")
    tracks = placed.of(part)
    for track_id, n_samples, (start, count) in zip(
        tracks["track_id"], tracks["n_samples"], _row_ranges(tracks), strict=True
    ):
        if (start, count) not in described:
            return _Problem(
                part, None, f"the part does not know rows {start} to {start + count} of {track_id}"
            )
        expected = index.grid.valid_frames(int(n_samples))
        if not np.array_equal(np.asarray(coordinates["valid_frames"])[start : start + count], expected):
            return _Problem(part, None, f"valid_frames of {track_id} are not those of its length")
    return None


def _problems_of_index(index: Index, tracks: pd.DataFrame, arrays: pd.DataFrame) -> Iterator[_Problem]:
    """What is wrong within the index itself."""
    for track_id in tracks.loc[tracks["track_id"].duplicated(), "track_id"].unique():
        yield _Problem(None, None, f"{track_id} is in the index twice")
    twice = arrays.duplicated(["part", "fingerprint"])
    for part, array in zip(arrays.loc[twice, "part"], arrays.loc[twice, "array"], strict=True):
        yield _Problem(part, array, "the index has this version of the part twice")
    placed = tracks[tracks["part"].notna()].sort_values(["part", "row_start"])
    lost = placed[~placed["part"].isin(arrays["part"])]
    for part, rows in lost.groupby("part"):
        yield _Problem(str(part), None, f"{len(rows)} tracks lie there, but the index has no array of it")
    end = placed["row_start"] + placed["n_chunks"]
    before = end.groupby(placed["part"]).shift()
    for part, name in placed.loc[
        (placed["row_start"] < before).fillna(False), ["part", "track_id"]
    ].to_numpy():
        yield _Problem(part, None, f"the rows of {name} are another track's too")
    rows_of_part = arrays.groupby("part")["rows"].min().reindex(placed["part"]).to_numpy()
    for part, name in placed.loc[(end > rows_of_part).fillna(False), ["part", "track_id"]].to_numpy():
        yield _Problem(part, None, f"{name} has rows past the end of the part")
    expected = np.array([index.grid.n_chunks(int(n)) for n in placed["n_samples"]], dtype=np.int64)
    wrong = placed["n_chunks"].to_numpy(dtype=np.int64) != expected
    for part, name in placed.loc[wrong, ["part", "track_id"]].to_numpy():
        yield _Problem(part, None, f"{name} has another number of chunks than its length gives")
