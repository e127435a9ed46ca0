"""Upkeep of a store: what is in it, and removing what no commit names."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.store.index import Index, writable_index
from pipeline.store.lineage import command_line
from pipeline.store.location import Location, Stored, location_of
from pipeline.store.parts import PARTS
from pipeline.store.reading import FeatureStore

GRACE_S = 3600.0
KEEP_S = 7 * 86_400.0
KIND_ORDER = {"audio": 0, "log_mel": 1, "mfcc": 2, "cnn": 3}


def features_table(store: FeatureStore) -> pd.DataFrame:
    """Return coverage and size by feature and version.

    Returns
    -------
    DataFrame
        `feature`, `fingerprint`, `kind`, `dtype`, `tracks`, `chunks`, `hours`, `bytes`, `parts`.
    """
    tracks = store.tracks
    live = tracks.groupby("part").agg(
        tracks=("n_chunks", "size"), chunks=("n_chunks", "sum"), seconds=("duration_s", "sum")
    )
    joined = store.arrays.merge(live.reset_index(), on="part", how="left")
    joined = joined.fillna({"tracks": 0, "chunks": 0, "seconds": 0.0})
    table = (
        joined.groupby(["feature", "fingerprint", "kind", "dtype"], sort=False)
        .agg(
            tracks=("tracks", "sum"),
            chunks=("chunks", "sum"),
            seconds=("seconds", "sum"),
            bytes=("bytes", "sum"),
            parts=("part", "nunique"),
        )
        .reset_index()
    )
    table.insert(6, "hours", table.pop("seconds") / 3600.0)
    table = table.sort_values(
        "kind", key=lambda kinds: kinds.map(KIND_ORDER), kind="stable", ignore_index=True
    )
    return table.astype({"tracks": int, "chunks": int, "bytes": int, "parts": int})


def summary(store: FeatureStore) -> dict[str, Any]:
    """Return what ``mirstore status`` prints, as plain values."""
    rows = store.tracks
    orphans = unnamed_keys(store.location, Index(store.location).arrays(["part", "array"]))
    commit = store.index.last_commit()
    return {
        "store": str(store.location),
        "tracks": len(rows),
        "hours": float(rows["duration_s"].sum()) / 3600.0,
        "gone": int((rows["status"] == "gone").sum()),
        "truncated": int(rows["truncated"].notna().sum()),
        "failed": len(store.failures),
        "parts": int(store.arrays["part"].nunique()),
        "orphan_parts": sum("/" not in name for name in orphans),
        "orphan_arrays": sum("/" in name for name in orphans),
        "orphan_bytes": sum(store.location.size(f"{PARTS}/{name}") for name in orphans),
        "bytes": int(store.arrays["bytes"].sum()),
        "commit": store.snapshot,
        "committed": pd.Timestamp(commit["timestamp"], unit="ms").isoformat(timespec="seconds") + "Z",
        "command": commit.get("command"),
    }


def unnamed_keys(location: Location, arrays: pd.DataFrame) -> list[str]:
    """Return the parts, and ``part/array`` of parts, that the index does not name.

    In a bucket, where looking into every part costs a request, only whole parts are looked for.

    Parameters
    ----------
    location
        Of the store.
    arrays
        The index's ``arrays`` table: `part` and `array`.
    """
    named: dict[str, set[str]] = defaultdict(set)
    for part, array in zip(arrays["part"], arrays["array"], strict=True):
        named[part].add(array)
    keys: list[str] = []
    for part in location.names(PARTS):
        if part not in named:
            keys.append(part)
        elif location.listing_is_cheap:
            found = location.names(f"{PARTS}/{part}")
            keys += [f"{part}/{name}" for name in found if "@" in name and name not in named[part]]
    return keys


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something below ``parts/`` that no snapshot that is kept names."""

    name: str
    bytes: int
    age_s: float
    removed: bool


def _unnamed(location: Location, arrays: pd.DataFrame) -> Mapping[str, list[Stored]]:
    """Return the files of what the index does not name, by ``part`` or ``part/array``, from one walk."""
    named: dict[str, set[str]] = defaultdict(set)
    for part, array in zip(arrays["part"], arrays["array"], strict=True):
        named[part].add(array)
    found: dict[str, list[Stored]] = defaultdict(list)
    for stored in location.walk(PARTS):
        _, part, name, *_ = [*stored.key.split("/"), ""]
        if part not in named:
            found[part].append(stored)
        elif "@" in name and name not in named[part]:
            found[f"{part}/{name}"].append(stored)
    return found


def collect_garbage(
    place: "str | Location", *, grace_s: float = GRACE_S, keep_s: float = KEEP_S, dry_run: bool = False
) -> list[Orphan]:
    """Remove what killed runs left, and what only snapshots name that are not kept any more.

    Parameters
    ----------
    place
        Of the store.
    grace_s
        Leave alone what changed within so many seconds: a job may be writing it.
    keep_s
        Snapshots that were the newest within so many seconds stay readable; older ones do not.
    dry_run
        Only report.

    Returns
    -------
    list of Orphan

    Raises
    ------
    StoreLockedError
        If another command is writing.
    StoreWriteError
        If the file system refuses.
    """
    location = location_of(place)
    with writable_index(location, command_line("gc")) as index:
        kept = index.oldest_within(keep_s)
        unnamed = _unnamed(location, index.arrays_since(kept))
        now = max(time.time(), max((s.modified_s for files in unnamed.values() for s in files), default=0.0))
        orphans = []
        superseded = False
        known = set(index.arrays_since(index.format.oldest_snapshot)["part"])
        for name, files in sorted(unnamed.items()):
            age_s = now - max((stored.modified_s for stored in files), default=0.0)
            remove = age_s >= grace_s
            superseded |= remove and name.partition("/")[0] in known
            orphans.append(Orphan(name, sum(stored.size for stored in files), age_s, remove and not dry_run))
        if dry_run:
            return orphans
        if superseded:  # said before it is true, so that a kill in between leaves no snapshot half readable
            index.keep_from(kept)
        for orphan in orphans:
            if orphan.removed:
                location.delete(f"{PARTS}/{orphan.name}")
        index.vacuum(keep_s)
    return orphans
