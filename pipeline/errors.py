"""Errors of the pipeline, grouped by what the one who meets them can do."""

import difflib
import heapq
import posixpath
from collections.abc import Iterable

from features.errors import MirstoreError

# difflib takes 80 µs a name; of more names than this, those that have most pieces in common are compared.
_COMPARED = 1000
_PIECE = 4  # characters
_NEAR, _NEAR_PATH = 0.6, 0.75  # paths are long, and much of them is the same
_LOOKED_AT = 5


# What every error of a damaged part ends with.
CURE = (
    "Restore the part from a backup; or, where the audio files are still there, `mirstore forget` the tracks, "
    "`mirstore forget --allow` them, and extract again."
)


class CatalogError(MirstoreError):
    """The catalog, a manifest or a table of labels says something impossible; edit the file."""


class AudioError(MirstoreError):
    """One audio file cannot be used; replace or repair that file.

    Parameters
    ----------
    uri
        The file.
    stage
        Where it failed: ``fetch`` (from another machine), ``forgotten`` (not to be decoded), ``open``,
        ``decode``, ``feature`` or ``worker``.
    reason
        One line.
    """

    def __init__(self, uri: str, stage: str, reason: str) -> None:
        super().__init__(uri, stage, reason)
        self.uri = uri
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason} ({self.stage})"


class StoreError(MirstoreError):
    """The store cannot do what was asked."""


class StoreMissingError(StoreError):
    """There is no store at that place; run ``mirstore extract`` or correct the path."""


class StoreFormatError(StoreError):
    """The store was written by a newer mirstore, or on another grid."""


class StoreAccessError(StoreError):
    """The store's bucket cannot be reached or refuses to be read; check credentials and network."""


class StoreLockedError(StoreError):
    """Another command is writing to the store; wait for it."""


class StoreDamagedError(StoreError):
    """Bytes of a part are not what was written; restore or re-extract that part."""


class StoreWriteError(StoreError):
    """The store's file system refuses to be written: disk full, read-only, no permission."""


class OutputError(MirstoreError):
    """What a command prints cannot be written: disk full, input/output error."""


class ClusterError(MirstoreError):
    """The Dask cluster cannot be reached or used."""


class MissingGuardError(ClusterError):
    """A script starts workers while it is imported, as workers import it."""

    def __init__(self, *_: object) -> None:
        super().__init__(
            'Put the call of extract under `if __name__ == "__main__":`, because workers import the script.'
        )


class UnknownNameError(MirstoreError, KeyError):
    """A track, feature or collection of that name does not exist; see the suggestion."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string where none is near.

    Examples
    --------
    >>> did_you_mean("logmle", ["audio", "logmel"])
    " Did you mean 'logmel'?"
    """
    names = list(known)
    if len(names) > _COMPARED:
        pieces = [name[start : start + _PIECE] for start in range(0, len(name), _PIECE)]
        names = heapq.nlargest(_COMPARED, names, key=lambda other: sum(piece in other for piece in pieces))
    close = difflib.get_close_matches(name, names, n=_LOOKED_AT, cutoff=_NEAR_PATH if "/" in name else _NEAR)
    found = next((other for other in close if _file_is_near(name, other)), None)
    return f" Did you mean {found!r}?" if found is not None else ""


def _file_is_near(name: str, other: str) -> bool:
    """Return whether the last pieces of two paths are alike: a folder that both have makes paths alike too."""
    if "/" not in name + other:
        return True
    file, other_file = (posixpath.splitext(posixpath.basename(path))[0] for path in (name, other))
    return difflib.SequenceMatcher(None, file, other_file).ratio() >= _NEAR
