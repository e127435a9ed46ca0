"""Errors of the pipeline, grouped by what the one who meets them can do."""

import difflib
import heapq
from collections.abc import Iterable

from features.errors import MirstoreError

# difflib takes 80 µs a name; of more names than this, those that have most pieces in common are compared.
_COMPARED = 1000
_PIECE = 4  # characters


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
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string.

    Examples
    --------
    >>> did_you_mean("logmle", ["audio", "logmel"])
    " Did you mean 'logmel'?"
    """
    names = list(known)
    if len(names) > _COMPARED:
        pieces = [name[start : start + _PIECE] for start in range(0, len(name), _PIECE)]
        names = heapq.nlargest(_COMPARED, names, key=lambda other: sum(piece in other for piece in pieces))
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
