"""What changed between two snapshots: tracks, and versions of features."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.store.reading import LABEL_COLUMNS, FeatureStore

# Columns of the index, by what a reader calls their change. Where the rows lie (part, row_start) is no change of a
# track: compaction moves them.
ASPECTS: dict[str, tuple[str, ...]] = {
    "content": ("content_hash", "n_samples", "n_chunks"),
    "labels": LABEL_COLUMNS,
    "status": ("status", "stage", "reason", "truncated"),
    "location": ("uri",),
    "file": ("size", "mtime_ns", "codec", "decoder", "source_rate", "channels", "peak"),
}


@dataclass(frozen=True, slots=True)
class Differences:
    """What changed from one snapshot to another.

    Parameters
    ----------
    old, new
        Numbers of the snapshots.
    tracks
        `track_id`, `change` (``added``, ``removed`` or ``changed``) and `what` (the aspects of a changed track:
        ``content``, ``labels``, ``status``, ``location``, ``file``, joined by commas), by `track_id`.
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
    return Differences(
        old.snapshot, new.snapshot, _track_differences(old, new), _feature_differences(old, new)
    )


def _track_differences(old: FeatureStore, new: FeatureStore) -> pd.DataFrame:
    before, after = (pd.Index(store.index_rows(["track_id"])["track_id"]) for store in (old, new))
    found = before.get_indexer(after)
    numbers = found[found >= 0], np.flatnonzero(found >= 0)
    both = after[numbers[1]]
    what = np.full(len(both), "", dtype=object)
    for aspect, columns in ASPECTS.items():  # one by one: whole rows of a million tracks are a gigabyte
        was, now = (
            store.index_rows(columns).iloc[rows].reset_index(drop=True)
            for store, rows in zip((old, new), numbers, strict=True)
        )
        changed = np.zeros(len(both), dtype=bool)
        for name in columns:
            equal = (was[name] == now[name]).fillna(False).to_numpy(dtype=bool)
            where = ~equal & ~(was[name].isna() & now[name].isna()).to_numpy()
            if name in LABEL_COLUMNS:
                where[where] = [
                    _parsed(one) != _parsed(other)
                    for one, other in zip(was.loc[where, name], now.loc[where, name], strict=True)
                ]
            changed |= where
        what[changed] += np.where(what[changed] == "", aspect, f", {aspect}")
    touched = what != ""
    tables = [
        pd.DataFrame({"track_id": index, "change": change, "what": aspects}, dtype=object)
        for index, change, aspects in (
            (after[found < 0], "added", ""),
            (before.difference(both), "removed", ""),
            (both[touched], "changed", what[touched]),
        )
    ]
    return pd.concat(tables).sort_values("track_id", ignore_index=True)


def _parsed(text: object) -> object:
    # The order of a JSON object's names means nothing.
    return json.loads(text) if isinstance(text, str) else {}


def _feature_differences(old: FeatureStore, new: FeatureStore) -> pd.DataFrame:
    counts = []
    for store in (old, new):
        tracks = store.index_rows(["part"]).groupby("part").size().rename("tracks").reset_index()
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
