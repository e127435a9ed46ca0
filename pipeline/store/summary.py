"""What is in a store, in numbers."""

from collections import defaultdict
from typing import Any

import pandas as pd

from pipeline.store.erasures import blocked_hashes
from pipeline.store.index import Index
from pipeline.store.location import Location
from pipeline.store.parts import PARTS
from pipeline.store.reading import FeatureStore

KIND_ORDER = {"audio": 0, "log_mel": 1, "mfcc": 2, "cnn": 3}


def features_table(store: FeatureStore) -> pd.DataFrame:
    """Return coverage and size by feature and version.

    Returns
    -------
    DataFrame
        `feature`, `fingerprint`, `kind`, `dtype`, `tracks`, `chunks`, `hours`, `bytes`, `parts`.
    """
    tracks = store.placed_rows(["part", "n_chunks", "duration_s"])
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
    """Return what ``mirstore status`` prints, as plain values.

    `tracks` have features; of some the file is `gone` or has failed since (`failed_since`). `failed_files` have
    none, and some of them are gone too (`failed_files_gone`). `failed` is how many ``mirstore failures`` lists.
    """
    rows = store.placed_rows(["status", "truncated", "duration_s"])
    status = store.index_rows(["part", "status"])
    gone_files = status["part"].isna() & status["status"].eq("gone")
    newest = Index(store.location).arrays(["part", "array"])
    orphans = unnamed_keys(store.location, pd.concat([newest, store.arrays[["part", "array"]]]))
    commit = store.index.last_commit()
    return {
        "store": str(store.location),
        "tracks": len(rows),
        "hours": float(rows["duration_s"].sum()) / 3600.0,
        "gone": int((rows["status"] == "gone").sum()),
        "truncated": int(rows["truncated"].notna().sum()),
        "failed_since": int((rows["status"] == "failed").sum()),
        "failed_files": int(status["part"].isna().sum()),
        "failed_files_gone": int(gone_files.sum()),
        "failed": len(store.failures),
        "forgotten": len(blocked_hashes(store.location)),
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
