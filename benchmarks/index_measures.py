"""One measurement of `index.py` on a synthetic index, alone in its process.

    python benchmarks/index_measures.py NAME FOLDER

Prints JSON: by name of what was done, seconds of wall time and of CPU of all threads.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from index_build import CHUNKS, COLLECTIONS, part_rows
from index_upkeep import MEASURES as OF_UPKEEP
from numpy.typing import NDArray
from stopwatch import Figures, Stopwatch, Taken, now

from pipeline.catalog import load_catalog
from pipeline.planning import INDEXED_COLUMNS, Action, files_to_hash, plan, wanted_features
from pipeline.store.index import Index, writable_index
from pipeline.store.lineage import provenance
from pipeline.store.reading import FeatureStore
from pipeline.store.records import ArrayRow, TrackRow

CHANGED = 1000
LOOKED_UP = 1000
JOBS = 20


def quantile(taken: Sequence[NDArray[np.float64]], share: float) -> Taken:
    """Return quantiles of wall time and of CPU."""
    wall_s, cpu_s = np.quantile(taken, share, axis=0)
    return float(wall_s), float(cpu_s)


def opening(folder: Path) -> Figures:
    """Open a store and find where its tracks lie."""
    watch = Stopwatch()
    with watch("open"):
        store = FeatureStore(folder / "store")
    with watch("spans"):
        len(store.spans)
    with watch("chunk table"):
        len(store["logmel"].chunks)
    return watch.taken


def tracks(folder: Path) -> Figures:
    """Read all tracks with their labels, then select by a label."""
    watch = Stopwatch()
    store = FeatureStore(folder / "store")
    with watch("tracks with labels"):
        len(store.tracks)
    with watch("select by label"):
        chosen = store.select("year > 1990", genre="folk")
        n_chosen = len(chosen.spans)
    if not 0 < n_chosen < len(store.spans):
        raise SystemExit("index_measures.py: the selection is empty or everything.")
    return watch.taken


def past(folder: Path) -> Figures:
    """Open a store as it was one commit ago."""
    watch = Stopwatch()
    store = FeatureStore(folder / "store")
    with watch("past snapshot"):
        len(store.at(store.snapshot // 2).spans)
    with watch("list snapshots"):
        len(store.snapshots)
    return watch.taken


def planned(folder: Path, change: Callable[[pd.DataFrame], int]) -> Taken:
    """Return the time of planning after `change` was made to what a scan finds; it returns how many differ."""
    features = wanted_features(load_catalog(folder / "catalog.yaml").resolved_features())
    scanned = Index(folder / "store").tracks(["track_id", "collection", "uri", "size", "mtime_ns", "labels"])
    scanned = scanned.sort_values("track_id", ignore_index=True)
    differing = change(scanned)
    names = ("track_id", "collection", "uri", "reason")
    problems = pd.DataFrame({name: pd.Series(dtype="str") for name in names})
    begun = now()
    index = Index(folder / "store")
    indexed, arrays = index.tracks(INDEXED_COLUMNS), index.arrays(["part", "fingerprint"])
    hashes = dict.fromkeys(files_to_hash(scanned, indexed), "another")
    todo = plan(scanned, problems, indexed, arrays, features, collections=COLLECTIONS, hashes=hashes)
    taken = quantile([now() - begun], 0.5)
    found = len(todo.of(Action.EXTRACT))
    if found != differing or len(todo.tracks) != len(scanned):
        raise SystemExit(f"index_measures.py: planned {found} extractions, expected {differing}.")
    return taken


def plan_unchanged(folder: Path) -> Figures:
    """Plan where nothing has changed."""
    return {"plan, unchanged": planned(folder, lambda scanned: 0)}


def plan_changed(folder: Path) -> Figures:
    """Plan where half of 1,000 files have another size, and half another time, so that they are to be hashed."""

    def change(scanned: pd.DataFrame) -> int:
        rows = np.random.default_rng(0).choice(len(scanned), min(CHANGED, len(scanned)), replace=False)
        half = len(rows) // 2
        scanned.loc[rows[:half], "size"] += 1
        scanned.loc[rows[half:], "mtime_ns"] += 1
        return len(rows)

    return {"plan, 1,000 changed": planned(folder, change)}


def lookups(folder: Path) -> Figures:
    """Read log-mel of random tracks, from files in the page cache."""
    store = FeatureStore(folder / "store")
    feature, spans = store["logmel"], store.spans
    names = list(np.random.default_rng(1).choice(spans.track_ids.to_numpy(), min(LOOKED_UP, len(spans))))
    store.number(names[0])

    def timed(read: Callable[[str], object]) -> list[NDArray[np.float64]]:
        taken = []
        for name in names:
            begun = now()
            read(name)
            taken.append(now() - begun)
        return taken

    other = FeatureStore(folder / "store")["logmel"]
    for name in names:
        other.stored(name)

    found: Figures = {}
    for what, read in (
        ("number of a track", store.number),
        # The first time opens each track's part; the second finds it open.
        ("values of a track", feature.values),
        ("stored rows of a track", feature.stored),
        ("one chunk of a track", lambda name: feature.stored(name, 0, 1)),
    ):
        taken = timed(read)
        found[what] = quantile(taken, 0.5)
        found[f"{what}, p99"] = quantile(taken, 0.99)
    return found


def merge(folder: Path) -> Figures:
    """Replace 1,000 rows spread over the table, in one commit."""
    return _written(
        folder, lambda index, rows, _: {"merge of 1,000": quantile([_commit(index, updated=rows)], 0.5)}
    )


def merge_jobs(folder: Path) -> Figures:
    """Replace 16 rows spread over the table, as a job of a second extraction does."""

    def jobs(index: Index, rows: list[TrackRow], _: list[TrackRow]) -> Figures:
        taken = [_commit(index, updated=rows[i :: JOBS * 2][: len(CHUNKS)]) for i in range(JOBS // 4)]
        return {"merge of 16": quantile(taken, 0.5)}

    return _written(folder, jobs)


def append(folder: Path) -> Figures:
    """Add 1,000 rows in one commit, then some jobs' rows in one commit each."""

    def jobs(index: Index, _: list[TrackRow], new: list[TrackRow]) -> Figures:
        found = {"append of 1,000": quantile([_commit(index, added=new[:CHANGED])], 0.5)}
        arrays = [ArrayRow(**row) for row in index.arrays().head(4).to_dict(orient="records")]
        taken = []
        for i in range(JOBS):
            rows = new[CHANGED + i * len(CHUNKS) :][: len(CHUNKS)]
            taken.append(_commit(index, added=rows, arrays=[replace(row, part=f"new{i}") for row in arrays]))
        return {**found, "append of a job": quantile(taken, 0.5)}

    return _written(folder, jobs)


def compaction(folder: Path) -> Figures:
    """Join the many small files that an extraction leaves."""

    def jobs(index: Index, _: list[TrackRow], new: list[TrackRow]) -> Figures:
        for i in range(40):
            index.commit(
                added=new[i * len(CHUNKS) :][: len(CHUNKS)], provenance=provenance("mirstore extract")
            )
        watch = Stopwatch()
        with watch("compact"):
            index.compact(provenance("mirstore extract"))
        return watch.taken

    return _written(folder, jobs)


def _commit(index: Index, **rows: Any) -> NDArray[np.float64]:
    begun = now()
    index.commit(**rows, provenance=provenance("mirstore extract"))
    return now() - begun


def _written(folder: Path, write: Callable[[Index, list[TrackRow], list[TrackRow]], Figures]) -> Figures:
    """Write to a copy of the index: given are changed rows of it, and rows that are new."""
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        for name in ("tracks", "arrays"):
            shutil.copytree(folder / "store" / name, Path(copy, name))
        shutil.copy(folder / "store" / "mirstore.json", copy)
        n_parts = len(Index(copy).tracks(["part"])) // len(CHUNKS)
        step = max(1, n_parts * len(CHUNKS) // CHANGED)
        numbers = range(0, n_parts * len(CHUNKS), step)[:CHANGED]
        changed = [part_rows(number // len(CHUNKS))[1][number % len(CHUNKS)] for number in numbers]
        changed = [replace(row, size=row.size + 1) for row in changed]
        new = [row for part in range(n_parts, n_parts + 128) for row in part_rows(part)[1]]
        with writable_index(copy, "mirstore extract") as index:
            return write(index, changed, new)


MEASURES: Mapping[str, Callable[[Path], Figures]] = {
    measure.__name__: measure
    for measure in (
        opening,
        tracks,
        past,
        plan_unchanged,
        plan_changed,
        lookups,
        append,
        merge,
        merge_jobs,
        compaction,
        *OF_UPKEEP,
    )
}

if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](Path(sys.argv[2]))))
