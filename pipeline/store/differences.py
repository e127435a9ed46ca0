"""What changed between two snapshots: tracks, and versions of features."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.store.reading import FeatureStore
from pipeline.store.track_table import LABEL_COLUMNS

# Columns of the index, by what a reader calls their change. Where the rows lie (part, row_start) is no change of a
# track: compaction moves them. Where they lie alike under two names, the track was moved.
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
        `track_id`, `change` (``added``, ``removed``, ``moved``, ``gone`` from its collection, ``back`` in it, or
        ``changed`` otherwise), `what` (the aspects of a track that changed besides: ``content``, ``labels``,
        ``status``, ``location``, ``file``, joined by commas) and `old_track_id` (of a moved track; else None), by
        `track_id`. Once ``mirstore compact`` has rewritten its rows, a track that had moved is told as removed
        and added.
    failed_files
        The same of failed files, which have no features; where one was met first, its change is ``failed``. One
        that has features since is an added track.
    features
        `feature`, `fingerprint`, `change` (``added``, ``removed``, ``grown`` or ``shrunk``), and the numbers of
        tracks `before` and `after`.
    """

    old: int
    new: int
    tracks: pd.DataFrame
    failed_files: pd.DataFrame
    features: pd.DataFrame


def differences(old: FeatureStore, new: FeatureStore) -> Differences:
    """Return what changed from one snapshot of a store to another.

    Parameters
    ----------
    old, new
        Of one store, as ``store.at(n)`` gives them.
    """
    tracks, failed_files = _track_differences(old, new)
    return Differences(old.snapshot, new.snapshot, tracks, failed_files, _feature_differences(old, new))


def _track_differences(old: FeatureStore, new: FeatureStore) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Changes of tracks, which had or have features, and of failed files."""
    before, after = (
        store.index_rows(["track_id", "part", "row_start", "status"]).reset_index(drop=True)
        for store in (old, new)
    )
    place = pd.Index(before["track_id"]).get_indexer(after["track_id"])  # -1: there was no such name
    removed = before.drop(index=place[place >= 0])
    added = after[place < 0]
    moves = _moves(removed, added)
    pairs = (
        np.concatenate([place[place >= 0], moves["old"]]),
        np.concatenate([np.flatnonzero(place >= 0), moves["new"]]),
    )
    moved = np.arange(len(pairs[0])) >= len(pairs[0]) - len(moves)
    what = _changes(old, new, pairs, moved)
    had, have, was_gone, is_gone = (
        values.to_numpy(dtype=bool)[numbers]
        for values, numbers in (
            (before["part"].notna(), pairs[0]),
            (after["part"].notna(), pairs[1]),
            (before["status"].eq("gone"), pairs[0]),
            (after["status"].eq("gone"), pairs[1]),
        )
    )
    change = np.select(
        [moved, have & ~had, had & ~have, is_gone & ~was_gone, was_gone & ~is_gone, what != ""],
        ["moved", "added", "removed", "gone", "back", "changed"],
        default="",
    ).astype(object)
    what[np.isin(change, ["added", "removed"])] = ""
    by_status = np.isin(change, ["gone", "back"])
    what[by_status] = [_without_status(aspects) for aspects in what[by_status]]
    came = after.loc[added.index.difference(moves["new"])]
    went = before.loc[removed.index.difference(moves["old"])]
    told = np.flatnonzero(change != "")
    names = after["track_id"].to_numpy(dtype=object)[pairs[1][told]]
    old_names = before["track_id"].to_numpy(dtype=object)[pairs[0][told]]
    no_features = came["part"].isna(), went["part"].isna()
    pieces = (
        (names, change[told], what[told], np.where(moved[told], old_names, None), ~(had | have)[told]),
        (came["track_id"], np.where(no_features[0], "failed", "added"), "", None, no_features[0]),
        (went["track_id"], "removed", "", None, no_features[1]),
    )
    columns = ("track_id", "change", "what", "old_track_id", "failed")
    table = pd.concat(
        [pd.DataFrame(dict(zip(columns, piece, strict=True)), dtype=object) for piece in pieces]
    ).sort_values("track_id", ignore_index=True)
    failed = table.pop("failed").astype(bool)
    return table[~failed].reset_index(drop=True), table[failed].reset_index(drop=True)


def _without_status(aspects: str) -> str:
    return ", ".join(aspect for aspect in aspects.split(", ") if aspect != "status")


def _moves(removed: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """Row numbers `old` and `new` of the tracks whose features have another name now."""
    old, new = (
        rows.loc[rows["part"].notna(), ["part", "row_start"]].rename_axis(name).reset_index()
        for rows, name in ((removed, "old"), (added, "new"))
    )
    return old.merge(new, on=["part", "row_start"])[["old", "new"]]


def _changes(
    old: FeatureStore,
    new: FeatureStore,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    moved: NDArray[np.bool_],
) -> NDArray[np.object_]:
    """What changed of each pair of rows, beside the place of those that moved; "" where nothing did."""
    what = np.full(len(moved), "", dtype=object)
    for aspect, columns in ASPECTS.items():  # one by one: whole rows of a million tracks are a gigabyte
        was, now = (
            store.index_rows(columns).iloc[rows].reset_index(drop=True)
            for store, rows in zip((old, new), pairs, strict=True)
        )
        changed = np.zeros(len(moved), dtype=bool)
        for name in columns:
            equal = (was[name] == now[name]).fillna(False).to_numpy(dtype=bool)
            where = ~equal & ~(was[name].isna() & now[name].isna()).to_numpy()
            if name in LABEL_COLUMNS:
                where[where] = [
                    _parsed(one) != _parsed(other)
                    for one, other in zip(was.loc[where, name], now.loc[where, name], strict=True)
                ]
            changed |= where
        if aspect == "location":
            changed &= ~moved
        what[changed] += np.where(what[changed] == "", aspect, f", {aspect}")
    return what


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
