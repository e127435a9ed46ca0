"""What a run has to do, and why: a pure function of scan, index and catalog.

No file is opened here. The few whose content must be known first (a changed modification time, a
new name for a file that has gone) are named by `files_to_hash`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.framing import Grid
from pipeline.definitions import Feature
from pipeline.moves import moves
from pipeline.store.erasures import FORGOTTEN

# Stages of failures in which not all of a file was read: what the index knew of it before still holds.
UNREAD = ("scan", "fetch")


class Action(StrEnum):
    """What happens to a track."""

    EXTRACT = "extract"  # decode the file, compute everything
    COMPUTE = "compute"  # compute missing features from what the store has
    MOVE = "move"  # same content under another name: only the row changes
    UPDATE = "update"  # same content, other labels, folder or modification time: only the row changes
    BACK = "back"  # had gone and is there again, as it was: only the row changes
    BACK_FAILED = "back, failed"  # the same of a file that had failed, and is left alone
    MARK_GONE = "mark gone"  # its collection no longer has it
    FAIL = "fail"  # cannot even be opened: becomes a row of `failures`
    SKIP = "skip"  # failed before and has not changed since
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do.

    Parameters
    ----------
    tracks
        One row a track: `track_id`, `collection`, `uri`, `size`, `mtime_ns`, `labels`, `action`,
        `reason`, `has_features` (it is a track of the store, not a file that never was one), and for moves
        `old_track_id`.
    parts
        One row a part that lacks features: `part`, `missing` (tuple of feature names), `tracks`.
    features
        The features that are to be complete, upstream first.
    emptied
        Number of tracks with features by collection, of collections in which nothing was found any more.
    """

    tracks: pd.DataFrame
    parts: pd.DataFrame
    features: tuple[Feature, ...]
    emptied: Mapping[str, int]

    def of(self, *actions: Action) -> pd.DataFrame:
        """Return the tracks with one of `actions`."""
        return self.tracks[self.tracks["action"].isin(list(actions))]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return len(self.of(Action.NOTHING, Action.SKIP)) == len(self.tracks)

    @property
    def to_compute(self) -> tuple[Feature, ...]:
        """The features that some track is to be given."""
        if len(self.of(Action.EXTRACT)):
            return self.features
        lacking = {name for names in self.parts["missing"] for name in names}
        return tuple(feature for feature in self.features if feature.name in lacking)

    def count(self, *actions: Action) -> tuple[int, int]:
        """Return how many have one of `actions`: tracks of the store, and files that have no features."""
        tracks = self.of(*actions)["has_features"].astype(bool)
        return int(tracks.sum()), int((~tracks).sum())

    def to_records(self) -> list[dict[str, object]]:
        """Return one mapping a track that has something to do, or was skipped."""
        rows = self.tracks[self.tracks["action"] != Action.NOTHING.value]
        columns = ["track_id", "action", "reason", "size", "old_track_id"]
        known = rows[columns].astype(object)
        records: list[dict[str, object]] = known.where(known.notna(), None).to_dict(orient="records")
        return records

    def summary(self) -> pd.DataFrame:
        """Count files and bytes by action and reason."""
        grouped = self.tracks.groupby(["action", "reason"], observed=True, sort=True)
        table = grouped.agg(files=("track_id", "size"), bytes=("size", "sum")).reset_index()
        return table.sort_values("files", ascending=False, kind="stable", ignore_index=True)


def wanted_features(features: Mapping[str, Feature], only: Sequence[str] = ()) -> tuple[Feature, ...]:
    """Return the named features and all they are computed from, upstream first; all without names.

    Features of one fingerprint are one feature.
    """
    keep: set[str] = set()
    for name in only or features:
        at: str | None = name
        while at is not None and at not in keep:
            keep.add(at)
            at = features[at].upstream
    wanted: dict[str, Feature] = {}
    for name, feature in features.items():
        if name in keep and feature.fingerprint not in wanted:
            upstream = wanted[features[feature.upstream].fingerprint].name if feature.upstream else None
            wanted[feature.fingerprint] = replace(feature, upstream=upstream)
    return tuple(wanted.values())


# What planning needs to know of the index: of a million tracks, all columns would be a gigabyte.
INDEXED_COLUMNS = (
    "track_id",
    "collection",
    "uri",
    "size",
    "mtime_ns",
    "status",
    "labels",
    "content_hash",
    "part",
    "stage",
    "reason",
)


_DECIDED = ("action", "reason", "old_track_id", "content", "in_index", "has_features")


def files_to_hash(scanned: pd.DataFrame, indexed: pd.DataFrame) -> list[str]:
    """Return the uris whose content decides between new and moved, or changed and touched.

    Parameters
    ----------
    scanned
        `Scan.tracks`.
    indexed
        The ``tracks`` table, at least `INDEXED_COLUMNS`.
    """
    known = indexed[indexed["content_hash"].notna()]
    both = scanned.merge(known[["track_id", "size", "mtime_ns"]], on="track_id", suffixes=("", "_known"))
    touched = both[(both["size"] == both["size_known"]) & (both["mtime_ns"] != both["mtime_ns_known"])]
    gone = known[~_among(known["track_id"], scanned["track_id"])]
    new = scanned[~_among(scanned["track_id"], indexed["track_id"]) & scanned["size"].isin(gone["size"])]
    # With features, the row has the hash of what they are of.
    refused = indexed.loc[indexed["stage"].eq(FORGOTTEN) & indexed["part"].notna(), "track_id"]
    unsure = scanned[_among(scanned["track_id"], refused)]
    return list(dict.fromkeys([*touched["uri"], *new["uri"], *unsure["uri"]]))


def _among(names: pd.Series, others: pd.Series) -> NDArray[np.bool_]:
    """Return which names are among others, ten times faster than `Series.isin`, which makes Python strings."""
    kind = pa.large_string()
    found: NDArray[np.bool_] = np.asarray(pc.is_in(pa.array(names, kind), value_set=pa.array(others, kind)))
    return found


def plan(
    scanned: pd.DataFrame,
    problems: pd.DataFrame,
    indexed: pd.DataFrame,
    arrays: pd.DataFrame,
    features: tuple[Feature, ...],
    *,
    collections: Sequence[str],
    listed: Collection[str] | None = None,
    hashes: Mapping[str, str] | None = None,
    forgotten: Collection[str] = (),
    retry_failed: bool = False,
) -> Plan:
    """Compare what is there with what the store has.

    Parameters
    ----------
    scanned, problems
        `Scan.tracks` and `Scan.problems`.
    indexed, arrays
        The index's two tables, of ``tracks`` at least `INDEXED_COLUMNS`.
    features
        What is to be complete, upstream first, as `wanted_features` gives it.
    collections
        Collections that were scanned: tracks of others are left alone.
    listed
        All collections of the catalog, if others than these; tracks of others still may have moved here.
    hashes
        SHA-256 by uri of the files that `files_to_hash` named, and of `known_contents`.
    forgotten
        SHA-256 of files that no job decodes.
    retry_failed
        Try files again that failed and have not changed since.

    Returns
    -------
    Plan
    """
    hashes = hashes or {}
    old = indexed[indexed["collection"].isin(list(collections))]
    seen = scanned.merge(
        old[["track_id", "uri", "size", "mtime_ns", "status", "labels", "content_hash", "part", "stage"]],
        on="track_id",
        how="left",
        suffixes=("", "_old"),
    )
    listed = set(collections) if listed is None else set(listed)
    others = indexed[~indexed["collection"].isin(listed)]
    missing = _missing_by_part(pd.concat([old, others]) if len(others) else old, arrays, features)
    audio = next(feature for feature in features if feature.upstream is None)

    n = len(seen)
    action = np.full(n, Action.NOTHING.value, dtype=object)
    reason = np.full(n, "complete", dtype=object)

    def decide(where: "pd.Series | NDArray[np.bool_]", what: Action, why: str) -> None:
        chosen = np.asarray(where, dtype=bool) & (action == Action.NOTHING.value) & (reason == "complete")
        action[chosen], reason[chosen] = what.value, why

    status = seen["status"].fillna("new")
    same_size = seen["size"].eq(seen["size_old"]).fillna(False)
    same_time = seen["mtime_ns"].eq(seen["mtime_ns_old"]).fillna(False)
    content = seen["uri"].map(hashes) if hashes else pd.Series(None, index=seen.index, dtype=object)
    same_hash = content.notna() & content.eq(seen["content_hash"]).fillna(False)
    same_content = same_size & (same_time | same_hash)
    gone_before = status.eq("gone")
    unread = seen["stage"].isin(UNREAD)
    # A row that is gone keeps the stage at which its file had failed.
    failed = status.eq("failed") | (gone_before & seen["stage"].notna() & ~unread)
    refused = failed & seen["stage"].eq(FORGOTTEN)
    lacking = np.empty(n, dtype=object)
    lacking[:] = [
        missing.get(part, ()) if isinstance(part, str) else () for part in seen["part"].to_numpy(object)
    ]
    lacks_audio = np.array([audio.name in names for names in lacking], dtype=bool)

    def leave(where: "pd.Series | NDArray[np.bool_]", why: str) -> None:
        """Leave failed files alone; of those that had gone, the row says again that they failed."""
        decide(where & gone_before, Action.BACK_FAILED, why)
        decide(where, Action.SKIP, why)

    decide(status.eq("new"), Action.EXTRACT, "new")
    # The row of a file that failed has the size and time of what failed, and the hash of what its features are of.
    restored = failed & same_size & ~same_time & same_hash & ~refused
    unreached = failed & unread & same_content
    its_own = (restored | unreached) & seen["part"].notna()
    decide(its_own & ~lacks_audio & gone_before, Action.BACK, "the file is back")
    decide(its_own & ~lacks_audio, Action.UPDATE, "the file is back")
    decide(its_own, Action.EXTRACT, f"the file is back, no {audio.array_name}")
    decide(failed & ~same_content, Action.EXTRACT, "failed before, the file has changed")
    if refused.any():
        held = seen["content_hash"].where(seen["part"].isna(), content)
        leave(refused & held.isin(list(forgotten)), "the content of a forgotten track")
        decide(refused, Action.EXTRACT, "the content of a forgotten track, allowed again")
    decide(failed & unread, Action.EXTRACT, "could not be opened before")
    if retry_failed:
        decide(failed, Action.EXTRACT, "failed before, retried on request")
    leave(failed, "failed before, unchanged")
    decide(~same_content, Action.EXTRACT, "the file has changed")
    decide(seen["part"].isna(), Action.EXTRACT, "has no features")
    decide(lacks_audio, Action.EXTRACT, f"no {audio.array_name}")
    decide(gone_before, Action.BACK, "back in its collection")
    decide(~same_time, Action.UPDATE, "touched, same content")
    decide(seen["uri"].ne(seen["uri_old"]), Action.UPDATE, "its folder has another place")
    labels, labels_old = seen["labels"].fillna(""), seen["labels_old"].fillna("")
    decide(labels.ne(labels_old), Action.UPDATE, "labels have changed")
    for names in sorted(set(lacking) - {()}):
        lacks = np.array([has == names for has in lacking], dtype=bool)
        decide(lacks, Action.COMPUTE, f"no {', '.join(names)}")

    seen["action"], seen["reason"] = action, reason
    seen["old_track_id"] = pd.Series(None, index=seen.index, dtype=object)
    seen["content"] = content
    seen["in_index"] = status.ne("new")
    seen["has_features"] = seen["part"].notna()

    named = _among(old["track_id"], scanned["track_id"]) | _among(old["track_id"], problems["track_id"])
    gone = old[~named]
    # A folder that could not be listed is named with a slash at its end: of what is below it, nothing is known.
    unlisted = tuple(name for name in problems["track_id"] if name.endswith("/"))
    if unlisted:
        gone = gone[~gone["track_id"].str.startswith(unlisted)]
    moved = _mark_moves(seen, pd.concat([gone, others]) if len(others) else gone)
    gone = gone[~gone["track_id"].isin(moved)]
    columns = ["track_id", "collection", "uri", "size", "mtime_ns", "labels"]
    frames = [
        seen[[*columns, *_DECIDED]],
        _gone_rows(gone, columns, missing, audio),
        _problem_rows(problems, old, columns),
    ]
    tracks = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    kept = seen[seen["action"].isin([Action.COMPUTE, Action.UPDATE, Action.BACK, Action.MOVE])]
    present = pd.concat([kept["part"], gone["part"]]) if len(gone) else kept["part"]
    return Plan(
        tracks=tracks,
        parts=_parts(missing, present, audio),
        features=features,
        emptied=_emptied(scanned, old[~old["track_id"].isin(moved)], gone) if len(gone) else {},
    )


def _missing_by_part(
    indexed: pd.DataFrame, arrays: pd.DataFrame, features: tuple[Feature, ...]
) -> dict[str, tuple[str, ...]]:
    """Names of the features each part lacks, in order."""
    has = arrays.groupby("part")["fingerprint"].agg(frozenset).to_dict() if len(arrays) else {}
    known: dict[frozenset[str], tuple[str, ...]] = {}
    missing = {}
    for part in indexed["part"].dropna().unique():
        prints = has.get(part, frozenset())
        if prints not in known:
            known[prints] = tuple(f.name for f in features if f.fingerprint not in prints)
        missing[part] = known[prints]
    return missing


def _mark_moves(seen: pd.DataFrame, lost: pd.DataFrame) -> set[str]:
    """Turn new tracks whose content a lost one had into moves; return the lost ones."""
    if not len(lost):
        return set()
    pairs = moves(seen.loc[seen["reason"].eq("new"), ["track_id", "content"]], lost)
    rows = pairs["index"].to_numpy()
    seen.loc[rows, "action"], seen.loc[rows, "reason"] = Action.MOVE.value, "moved, same content"
    seen.loc[rows, "old_track_id"] = pairs["old_track_id"].to_numpy()
    seen.loc[rows, "part"] = pairs["part"].to_numpy()
    return set(pairs["old_track_id"])


def _emptied(scanned: pd.DataFrame, old: pd.DataFrame, gone: pd.DataFrame) -> dict[str, int]:
    """Tracks with features by collection, where nothing was found and all that were known are gone."""
    had, lost = (rows.loc[rows["part"].notna(), "collection"].value_counts() for rows in (old, gone))
    whole = lost[lost.eq(had.reindex(lost.index)) & ~lost.index.isin(scanned["collection"].unique())]
    return {str(name): int(n) for name, n in whole.sort_index().items()}


def _gone_rows(
    gone: pd.DataFrame, columns: list[str], missing: Mapping[str, tuple[str, ...]], audio: Feature
) -> pd.DataFrame:
    """Tracks that were not found: marked once; new features of them are computed from the cache too."""
    rows = gone[columns].copy()
    rows["action"], rows["reason"] = Action.MARK_GONE.value, "not found"
    already = gone["status"].eq("gone").to_numpy(dtype=bool)
    lacking = [missing.get(part, ()) if isinstance(part, str) else () for part in gone["part"]]
    computable = np.array([bool(names) and audio.name not in names for names in lacking], dtype=bool)
    reasons = np.array([f"no {', '.join(names)}; gone before" for names in lacking], dtype=object)
    rows.loc[already, "action"], rows.loc[already, "reason"] = Action.NOTHING.value, "gone before"
    rows.loc[already & computable, "action"] = Action.COMPUTE.value
    rows.loc[already & computable, "reason"] = reasons[already & computable]
    rows["old_track_id"], rows["content"], rows["in_index"] = None, None, True
    rows["has_features"] = gone["part"].notna()
    return rows


def _problem_rows(problems: pd.DataFrame, old: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    rows = problems[["track_id", "collection", "uri"]].copy()
    rows["size"], rows["mtime_ns"], rows["labels"] = 0, 0, None
    recorded = problems.merge(
        old[["track_id", "status", "reason", "part"]], on="track_id", how="left", suffixes=("", "_old")
    )
    same = recorded["reason"].eq(recorded["reason_old"])
    known, back = ((recorded["status"].eq(was) & same).to_numpy(dtype=bool) for was in ("failed", "gone"))
    rows["action"] = np.select(
        [known, back], [Action.SKIP.value, Action.BACK_FAILED.value], default=Action.FAIL.value
    )
    rows["reason"] = problems["reason"].to_numpy()
    rows["old_track_id"], rows["content"] = None, None
    rows["in_index"] = recorded["status"].notna().to_numpy()
    rows["has_features"] = recorded["part"].notna().to_numpy()
    return rows[[*columns, *_DECIDED]]


def _parts(missing: Mapping[str, tuple[str, ...]], present: pd.Series, audio: Feature) -> pd.DataFrame:
    """Parts whose tracks lack features that can be computed from the store; `present` has a row a track."""
    computable = [part for part, names in missing.items() if names and audio.name not in names]
    lacking = pd.DataFrame({"part": present[present.isin(computable)]})
    counts = lacking.groupby("part").size()
    return pd.DataFrame(
        {
            "part": counts.index.to_numpy(dtype=object),
            "missing": [missing[part] for part in counts.index],
            "tracks": counts.to_numpy(dtype=np.int64),
        }
    )


def estimated_rows(tracks: pd.DataFrame, grid: Grid) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Guess how many chunks files will have, from their size and ending: only balance depends on it."""
    bytes_a_second = {"wav": 176_000, "aif": 176_000, "aiff": 176_000, "flac": 90_000}
    endings = tracks["uri"].str.rsplit(".", n=1).str[-1].str.lower()
    rates = endings.map(bytes_a_second).fillna(18_000).to_numpy(dtype=np.float64)
    rows: np.ndarray[tuple[int], np.dtype[np.float64]] = np.maximum(
        1.0, tracks["size"].to_numpy(dtype=np.float64) / rates / grid.chunk_s
    )
    return rows


def batches(tracks: pd.DataFrame, grid: Grid, *, workers: int, rows_per_job: int = 128) -> list[pd.DataFrame]:
    """Cut tracks into jobs: largest songs first, jobs shrinking towards the end.

    Each job takes a share of what is left (guided self-scheduling), at most `rows_per_job` chunks
    and at least a few, so all workers end at about the same time.

    Parameters
    ----------
    tracks
        Rows of `Plan.tracks`.
    grid
        The store's grid.
    workers
        Number of workers.
    rows_per_job
        Chunks of audio in a job, at most (a single long track may have more).

    Returns
    -------
    list of DataFrame
    """
    if not len(tracks):
        return []
    rows = estimated_rows(tracks, grid)
    order = np.argsort(-rows, kind="stable")
    left = float(rows.sum())
    jobs, start = [], 0
    while start < len(order):
        target = min(float(rows_per_job), max(8.0, left / (2.0 * workers)))
        stop, taken = start, 0.0
        while stop < len(order) and (stop == start or taken + rows[order[stop]] <= target):
            taken += rows[order[stop]]
            stop += 1
        jobs.append(tracks.iloc[order[start:stop]])
        left -= taken
        start = stop
    return jobs
