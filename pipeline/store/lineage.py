"""Lineage: what each commit says of itself, and the commits of a store as a table."""

import getpass
import json
import platform
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

LIBRARIES = (
    "mirstore",
    "numpy",
    "scipy",
    "torch",
    "soxr",
    "av",
    "soundfile",
    "zarr",
    "numcodecs",
    "deltalake",
    "obstore",
)
COLUMNS = ["snapshot", "committed", "command", "by", "catalog", "counts", "changes", "libraries"]
# What a commit did that counted nothing, by Delta's name of it.
_UNCOUNTED = {
    "CREATE TABLE": "store made",
    "OPTIMIZE": "index files merged",
    "VACUUM START": "old index files removed",
    "VACUUM END": "old index files removed",
    "ADD COLUMN": "store brought up to date",
}


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Return the versions of what computes and stores features here, by name."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def command_line(otherwise: str) -> str:
    """Return the command under way: as it was typed, or `otherwise` where Python called."""
    return shlex.join(["mirstore", *sys.argv[1:]]) if Path(sys.argv[0]).name == "mirstore" else otherwise


def provenance(command: str, *, catalog: str | None = None) -> dict[str, str]:
    """Return what a commit records: who, by what command, with which catalog and libraries.

    Parameters
    ----------
    command
        As `command_line` gives it.
    catalog
        The catalog's hash, where one plays a part.
    """
    about = {"command": command, "by": _who(), "libraries": json.dumps(library_versions(), sort_keys=True)}
    return {**about, "catalog": catalog} if catalog else about


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def counted(**counts: int) -> str:
    """Return counts as a commit records them: those that are not zero, as JSON."""
    return json.dumps({name: n for name, n in counts.items() if n})


def _changes(about: Mapping[str, Any]) -> str:
    """What a commit counted, in words; commits of older versions counted rows added, updated and removed."""
    counts = json.loads(about.get("counts", "{}"))
    told = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
    return told or _UNCOUNTED.get(str(about.get("operation")), "upkeep of the index")


def commits_table(commits: Sequence[tuple[int, Mapping[str, Any]]]) -> pd.DataFrame:
    """Return commits as a table.

    Parameters
    ----------
    commits
        Snapshot number and what the commit says of itself.

    Returns
    -------
    DataFrame
        `snapshot`, `committed` (UTC), `command`, `by`, `catalog`, `counts` (dict), `changes` (the same in
        words), `libraries` (dict); what a commit does not say (those of other tools, of old versions) is None or
        empty.
    """
    rows = [
        {
            "snapshot": number,
            "changes": _changes(about),
            "committed": pd.Timestamp(about["timestamp"], unit="ms", tz="UTC"),
            "command": about.get("command") or about.get("operation"),
            "by": about.get("by"),
            "catalog": about.get("catalog"),
            "counts": json.loads(about.get("counts", "{}")),
            "libraries": json.loads(about.get("libraries", "{}")),
        }
        for number, about in commits
    ]
    # As objects first: a column of text would make None NaN.
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return table.astype({"snapshot": "int64", "committed": "datetime64[ms, UTC]"})
