"""Upkeep of a synthetic index, for `index_measures.py`: labels, diff, forget, compact, gc, verify and others.

What writes works on a copy: its tables are copies, its parts symbolic links, but for those that are written to.
A part's arrays are symbolic links too, and not looked into: of `gc` the listing is of 9 names a part, where a
part of four features has about 40. What is done to a copy before the measurement is done by another process.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from index_build import CHUNKS
from stopwatch import Figures, Stopwatch

from pipeline.exports import export
from pipeline.labels import add_labels
from pipeline.store import verification
from pipeline.store.compaction import compact
from pipeline.store.differences import differences
from pipeline.store.garbage import collect_garbage
from pipeline.store.index import Index, writable_index
from pipeline.store.lineage import provenance
from pipeline.store.reading import FeatureStore
from pipeline.store.removal import drop, forget
from pipeline.store.versions import feature_versions

LABELLED = 0.1  # of the tracks; 100,000 of a million
REMOVED = 0.02  # of the tracks, at random: a quarter of the parts then have rows that are nobody's
HOLLOW_PARTS = 64  # but at most half of all
EXPORTED = 100


def features(folder: Path) -> Figures:
    """Tell versions, coverage, libraries and models."""
    return _timed("features", lambda: feature_versions(FeatureStore(folder / "store")))


def halves(folder: Path) -> Figures:
    """Compare with half the commits ago."""

    def compared() -> object:
        store = FeatureStore(folder / "store")
        return differences(store.at(store.snapshot // 2), store)

    return _timed("diff, half of the tracks new", compared)


def labels(folder: Path) -> Figures:
    """Add two labels to a tenth of the tracks, then compare with what was before."""
    watch = Stopwatch()
    with copied(folder) as store:
        names = Index(store).tracks(["track_id"])["track_id"]
        names = names.sample(int(len(names) * LABELLED), random_state=0).tolist()
        table = folder / "labels.csv"
        mood = np.random.default_rng(0).integers(10, size=len(names))
        pd.DataFrame({"track_id": names, "mood": mood, "set": "train"}).to_csv(table, index=False)
        with watch("labels add, a tenth of the tracks"):
            report = add_labels(store, table)
        _check("labels", report.changed, len(names))
    return watch.taken


def relabelled(folder: Path) -> Figures:
    """Compare with what was before a tenth of the tracks got labels."""
    with copied(folder) as store:
        _beforehand("label", store)
        watch = Stopwatch()
        with watch("diff, a tenth relabelled"):
            new = FeatureStore(store)
            found = differences(new.at(new.snapshot - 1), new)
        _check("differences", len(found.tracks), int(len(new.spans) * LABELLED))
    return watch.taken


def exporting(folder: Path) -> Figures:
    """Choose by a label and a column, and export the embeddings of 100 tracks."""

    def exported() -> None:
        store = FeatureStore(folder / "store").select("genre == 'folk' and year > 1990")
        few = store.select(track_ids=store.spans.track_ids[:EXPORTED])
        with tempfile.TemporaryDirectory(dir=folder) as out:
            report = export(few, out, features=["embedding"], format="parquet")
        _check("exported", report.tracks, min(EXPORTED, len(store.spans)))

    return _timed("export of 100 chosen tracks", exported)


def verifying(folder: Path) -> Figures:
    """Verify, but for what reads the parts."""
    nothing = {"_problem_of_array": lambda *_: None, "_problem_of_part": lambda *_: None}
    with mock.patch.multiple(verification, **nothing):
        return _timed("verify, its index alone", lambda: verification.verify(folder / "store"))


def listing(folder: Path) -> Figures:
    """Look for garbage where there is none."""
    return _timed("gc, nothing to do", lambda: collect_garbage(folder / "store", dry_run=True))


def dropping(folder: Path) -> Figures:
    """Drop a version that every part has."""
    with copied(folder) as store:
        arrays = Index(store).arrays(["feature", "fingerprint"])
        version = arrays[arrays["feature"] == "embedding"].iloc[0]
        return _timed("drop", lambda: drop(store, f"embedding@{version['fingerprint']}"))


def forgetting(folder: Path) -> Figures:
    """Forget a track of a store of which nothing was ever removed."""
    with copied(folder) as store:
        return _timed("forget", lambda: forget(store, [_own_track(store)]))


def forgetting_worn(folder: Path) -> Figures:
    """Forget a track of a store from which some were removed, of which the tables know no more."""
    with copied(folder) as store:
        track = _own_track(store)
        _beforehand("wear", store, track)
        _beforehand("collect", store)
        return _timed("forget, worn store", lambda: forget(store, [track]))


def compacting(folder: Path) -> Figures:
    """Plan a compaction of 64 hollow parts."""
    return _compacted(folder, "compact --dry-run", dry_run=True)


def rewriting(folder: Path) -> Figures:
    """Compact 64 hollow parts."""
    return _compacted(folder, "compact of 64 parts", dry_run=False)


def _compacted(folder: Path, name: str, *, dry_run: bool) -> Figures:
    watch = Stopwatch()
    with copied(folder) as store:
        _beforehand("wear", store)
        with watch(name):
            report = compact(store, dry_run=dry_run)
        _check("hollow parts", report.rewritten, _hollow(folder / "store"))
    return watch.taken


def collecting(folder: Path) -> Figures:
    """Collect what a compaction of 64 parts leaves."""
    watch = Stopwatch()
    with copied(folder) as store:
        _beforehand("wear", store)
        _beforehand("compact", store)
        with watch("gc --keep 0"):
            removed = collect_garbage(store, grace_s=0, keep_s=0)
        _check("removed parts", len(removed), _hollow(folder / "store"))
    return watch.taken


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """Copy the tables of a store; its parts are symbolic links to the original's."""
    store = (folder / "store").resolve()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy = Path(name)
        for table in ("tracks", "arrays"):
            shutil.copytree(store / table, copy / table)
        shutil.copy(store / "mirstore.json", copy)
        (copy / "parts").mkdir()
        for part in (store / "parts").iterdir():
            (copy / "parts" / part.name).symlink_to(part)
        yield copy


def _own_track(store: Path) -> str:
    """Copy the part of a track for good, so that it may be written to; return the track."""
    row = Index(store).tracks(["track_id", "part"]).iloc[-1]
    part = store / "parts" / row["part"]
    original = part.resolve()
    part.unlink()
    shutil.copytree(original, part)
    return str(row["track_id"])


def wear(store: Path, but: str = "") -> None:
    """Remove some tracks at random, and three quarters of the tracks of some parts."""
    with writable_index(store, "prune") as index:
        tracks = index.tracks(["track_id", "part", "row_start"]).sort_values(["part", "row_start"])
        chosen = np.random.default_rng(0).random(len(tracks)) < REMOVED
        hollow = _hollow(store)
        chosen[: hollow * len(CHUNKS)] |= np.tile(np.arange(len(CHUNKS)) % 4 > 0, hollow)
        names = tracks.loc[chosen, "track_id"]
        index.commit(removed=names[names != but].tolist(), provenance=provenance("mirstore prune"))


def _hollow(store: Path) -> int:
    return min(HOLLOW_PARTS, len(list((store / "parts").iterdir())) // 2)


def label(store: Path) -> None:
    """Add a label to a tenth of the tracks."""
    names = Index(store).tracks(["track_id"])["track_id"]
    names = names.sample(int(len(names) * LABELLED), random_state=0)
    add_labels(store, pd.DataFrame({"track_id": names, "mood": "calm"}))


def _beforehand(preparation: str, store: Path, *names: str) -> None:
    """Do something in a process of its own, so that its memory does not count."""
    subprocess.run([sys.executable, __file__, preparation, store, *names], check=True)


def _timed(name: str, run: Callable[[], object]) -> Figures:
    watch = Stopwatch()
    with watch(name):
        run()
    return watch.taken


def _check(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise SystemExit(f"index_upkeep.py: {what}: {found}, expected {expected}.")


MEASURES: Sequence[Callable[[Path], Figures]] = (
    features,
    halves,
    labels,
    relabelled,
    exporting,
    dropping,
    forgetting,
    forgetting_worn,
    compacting,
    rewriting,
    listing,
    collecting,
    verifying,
)
PREPARATIONS: Mapping[str, Callable[..., object]] = {
    "wear": wear,
    "label": label,
    "compact": compact,
    "collect": lambda store: collect_garbage(store, grace_s=0, keep_s=0),
}

if __name__ == "__main__":
    PREPARATIONS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
