"""Upkeep of a store: what is in it, and removing what no commit names."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.store.files import write_lock, writing
from pipeline.store.index import Index
from pipeline.store.parts import PARTS
from pipeline.store.reading import FeatureStore

GRACE_S = 3600.0
KIND_ORDER = {"audio": 0, "log_mel": 1, "mfcc": 2, "cnn": 3}


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
    orphans = unnamed_folders(store.path, store.arrays)
    commit = store.index.last_commit()
    return {
        "store": str(store.path),
        "tracks": len(rows),
        "hours": float(rows["duration_s"].sum()) / 3600.0,
        "gone": int((rows["status"] == "gone").sum()),
        "truncated": int(rows["truncated"].notna().sum()),
        "failed": len(store.failures),
        "parts": int(store.arrays["part"].nunique()),
        "orphan_parts": sum(folder.parent.name == PARTS for folder in orphans),
        "orphan_arrays": sum(folder.parent.name != PARTS for folder in orphans),
        "orphan_bytes": sum(folder_bytes(folder) for folder in orphans),
        "bytes": int(store.arrays["bytes"].sum()),
        "commit": store.index.version,
        "committed": pd.Timestamp(commit["timestamp"], unit="ms").isoformat(timespec="seconds") + "Z",
        "command": commit.get("command"),
    }


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something in the parts folder that the index does not name."""

    name: str
    bytes: int
    age_s: float
    removed: bool


def unnamed_folders(place: Path, arrays: pd.DataFrame) -> list[Path]:
    """Return the parts, and the arrays of parts, that the index does not name.

    Parameters
    ----------
    place
        Folder of the store.
    arrays
        The index's ``arrays`` table: `part` and `array`.
    """
    parts = set(arrays["part"])
    named = set(zip(arrays["part"], arrays["array"], strict=True))
    folders: list[Path] = []
    for folder in sorted((place / PARTS).iterdir()) if (place / PARTS).exists() else []:
        if folder.name not in parts:
            folders.append(folder)
        else:
            folders += [
                array for array in sorted(folder.glob("*@*")) if (folder.name, array.name) not in named
            ]
    return folders


def _age_s(folder: Path) -> float:
    """Seconds since anything below a folder last changed."""
    newest = max((path.stat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)
    return max(0.0, time.time() - newest)


def collect_garbage(place: Path, *, grace_s: float = GRACE_S, dry_run: bool = False) -> list[Orphan]:
    """Remove parts and arrays that no commit names: what killed runs left.

    Parameters
    ----------
    place
        Folder of the store.
    grace_s
        Leave alone what changed within so many seconds.
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
    Index(place)  # refuses what is no store before anything is removed
    with write_lock(place, "mirstore gc"):
        index = Index(place)
        index.recover()
        candidates = unnamed_folders(place, index.arrays(["part", "array"]))
        orphans = []
        for folder in candidates:
            age, size = _age_s(folder), folder_bytes(folder)
            remove = age >= grace_s and not dry_run
            if remove:
                with writing(folder):
                    shutil.rmtree(folder)
            orphans.append(Orphan(str(folder.relative_to(place / PARTS)), size, age, remove))
    return orphans
