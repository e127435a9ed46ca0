"""Garbage: what killed runs left, and what only snapshots name that are not kept any more."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pipeline.store.erasures import ERASED
from pipeline.store.index import writable_index
from pipeline.store.lineage import command_line
from pipeline.store.location import Location, Stored, is_draft
from pipeline.store.parts import PARTS
from pipeline.store.places import Place

GRACE_S = 3600.0
KEEP_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Something below ``parts/`` that no snapshot that is kept names.

    Parameters
    ----------
    name
        ``part`` or ``part/array``.
    bytes, age_s
        Its size, and the seconds since it last changed.
    due
        Whether the grace period is over.
    removed
        Whether it is gone: what is due, unless it was a dry run.
    """

    name: str
    bytes: int
    age_s: float
    due: bool
    removed: bool


def _unnamed(location: Location, arrays: pd.DataFrame) -> Mapping[str, list[Stored]]:
    """Return the files of what the index does not name, by ``part`` or ``part/array``, and drafts of files."""
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
        elif is_draft(stored.key):
            found[stored.key.partition("/")[2]].append(stored)
    return found


def collect_garbage(
    place: Place, *, grace_s: float = GRACE_S, keep_s: float = KEEP_S, dry_run: bool = False
) -> list[Unneeded]:
    """Remove what killed runs left, and what only snapshots name that are not kept any more.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    grace_s
        Leave alone what changed within so many seconds: a job may be writing it.
    keep_s
        Snapshots that were the newest within so many seconds stay readable; older ones do not.
    dry_run
        Only report.

    Returns
    -------
    list of Unneeded

    Raises
    ------
    StoreLockedError
        If another command is writing.
    StoreWriteError
        If the file system refuses.
    """
    with writable_index(place, command_line("gc")) as index:
        location = index.location
        kept = index.oldest_within(keep_s)
        unnamed = _unnamed(location, index.arrays_since(kept))
        now = max(time.time(), max((s.modified_s for files in unnamed.values() for s in files), default=0.0))
        found = []
        superseded = False
        known = set(index.arrays_since(index.format.oldest_snapshot)["part"])
        for name, files in sorted(unnamed.items()):
            age_s = now - max((stored.modified_s for stored in files), default=0.0)
            remove = age_s >= grace_s
            superseded |= remove and name.partition("/")[0] in known
            size = sum(stored.size for stored in files)
            found.append(Unneeded(name, size, age_s, remove, remove and not dry_run))
        if dry_run:
            return found
        if superseded:  # said before it is true, so that a kill in between leaves no snapshot half readable
            index.keep_from(kept)
        for one in found:
            if one.removed:
                location.delete(f"{PARTS}/{one.name}")
        for folder in ("", f"{ERASED}/"):
            for name in location.names(folder):
                if is_draft(name):
                    location.delete(f"{folder}{name}")
        index.vacuum(keep_s, kept=kept)
    return found
