"""What changed between two snapshots: tracks, and versions of features."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.store.reading import LABEL_COLUMNS, FeatureStore

# Columns of the index, by what a reader calls their change. Where the rows lie (part, row_start) is no change of a
# track: compaction moves them. Where they lie alike under two names, the track was moved.
ASPECTS: dict[str, tuple[str, ...]] = {
    "content": ("content_hash", "n_samples", "n_chunks"),
    "labels": LABEL_COLUMNS,
    "status": ("status", "stage", "reason", "truncated"),
    "location": ("uri",),
    "file": ("size", "mtime_ns", "codec", "decoder", "source_rate", "channels", "peak"),
}
_COLUMNS = ["track_id", "part", "row_start", *(name for names in ASPECTS.values() for name in names)]


@dataclass(frozen=True, slots=True)
class Differences:
    """What changed from one snapshot to another.

    Parameters
    ----------
    old, new
        Numbers of the snapshots.
    tracks
        `track_id`, `change` (``added``, ``removed``, ``changed`` or ``moved``), `what` (the aspects of a track
        that changed: ``content``, ``labels``, ``status``, ``location``, ``file``, joined by commas; of a moved
        one not its location) and `old_track_id` (of a moved track; else None), by `track_id`. Once
        ``mirstore compact`` has rewritten its rows, a track that had moved is told as removed and added.
    features
        `feature`, `fingerprint`, `change` (``added``, ``removed``, ``grown`` or ``shrunk``), and the numbers of
        tracks `before` and `after`.
    """

    old: int
    new: int
    tracks: pd.DataFrame
    features: pd.DataFrame


def differences(old: FeatureStore, new: FeatureStore) -> Differences:
    """Return what changed from one snapshot of a store to another.

    Parameters
    ----------
    old, new
        Of one store, as ``store.at(n)`` gives them.
    """
    before, after = (_rows(store) for store in (old, new))
    return Differences(
        old.snapshot,
        new.snapshot,
        _track_differences(before, after),
        _feature_differences(old, new, before, after),
    )


def _rows(store: FeatureStore) -> pd.DataFrame:
    return store.index_rows(_COLUMNS).set_index("track_id").sort_index()


def _track_differences(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    both = before.index.intersection(after.index)
    added, removed = after.index.difference(before.index), before.index.difference(after.index)
    moves = _moves(before.loc[removed], after.loc[added])
    what = _changes(before.loc[both], after.loc[both])
    also = _changes(before.loc[moves["old"]], after.loc[moves["new"]], besides="location")
    touched = what != ""
    tables = [
        pd.DataFrame(
            {"track_id": index, "change": change, "what": aspects, "old_track_id": old}, dtype=object
        )
        for index, change, aspects, old in (
            (added.difference(moves["new"]), "added", "", None),
            (removed.difference(moves["old"]), "removed", "", None),
            (both[touched], "changed", what[touched], None),
            (moves["new"], "moved", also, moves["old"]),
        )
    ]
    return pd.concat(tables).sort_values("track_id", ignore_index=True)


def _moves(removed: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """Names `old` and `new` of the tracks whose rows have another name now."""
    old, new = (
        rows.loc[rows["part"].notna(), ["part", "row_start"]].rename_axis(name).reset_index()
        for rows, name in ((removed, "old"), (added, "new"))
    )
    return old.merge(new, on=["part", "row_start"])[["old", "new"]]


def _changes(old: pd.DataFrame, new: pd.DataFrame, *, besides: str = "") -> NDArray[np.object_]:
    """What changed of each of some tracks, but for one aspect; "" where nothing did."""
    old, new = old.reset_index(drop=True), new.reset_index(drop=True)  # a moved track's names differ
    what = np.full(len(old), "", dtype=object)
    for aspect, columns in ASPECTS.items():
        if aspect == besides:
            continue
        changed = np.zeros(len(old), dtype=bool)
        for name in columns:
            missing = old[name].isna().to_numpy(), new[name].isna().to_numpy()
            equal = (old[name] == new[name]).fillna(False).to_numpy(dtype=bool)
            where = ~equal & ~(missing[0] & missing[1])
            if name in LABEL_COLUMNS:
                where[where] = [
                    _parsed(one) != _parsed(other)
                    for one, other in zip(old.loc[where, name], new.loc[where, name], strict=True)
                ]
            changed |= where
        what[changed] += np.where(what[changed] == "", aspect, f", {aspect}")
    return what


def _parsed(text: object) -> object:
    # The order of a JSON object's names means nothing.
    return json.loads(text) if isinstance(text, str) else {}


def _feature_differences(
    old: FeatureStore, new: FeatureStore, before: pd.DataFrame, after: pd.DataFrame
) -> pd.DataFrame:
    counts = []
    for store, rows in ((old, before), (new, after)):
        tracks = rows.groupby("part").size().rename("tracks").reset_index()
        arrays = store.arrays[["part", "feature", "fingerprint"]].drop_duplicates(["part", "fingerprint"])
        joined = arrays.merge(tracks, on="part", how="left")
        # By fingerprint, as a feature may be renamed; the newest name is the last.
        counts.append(
            joined.groupby("fingerprint", sort=False).agg(
                feature=("feature", "last"), tracks=("tracks", "sum")
            )
        )
    table = counts[0].merge(
        counts[1], how="outer", left_index=True, right_index=True, suffixes=("_before", "_after")
    )
    table["feature"] = table["feature_after"].where(table["feature_after"].notna(), table["feature_before"])
    kept = table["tracks_before"].notna(), table["tracks_after"].notna()
    table["before"] = table["tracks_before"].fillna(0).astype(int)
    table["after"] = table["tracks_after"].fillna(0).astype(int)
    table["change"] = np.select(
        [~kept[0], ~kept[1], table["after"] > table["before"], table["after"] < table["before"]],
        ["added", "removed", "grown", "shrunk"],
        default="",
    )
    table = (
        table[table["change"] != ""].reset_index().sort_values(["feature", "fingerprint"], ignore_index=True)
    )
    return table[["feature", "fingerprint", "change", "before", "after"]]
