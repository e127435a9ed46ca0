"""What was forgotten for good: which rows of which parts, so that not even the past shows them.

    <store>/erased/<id>.json     {"spans": [{"part", "row_start", "n_chunks"}], "track_ids": [...], "done": bool}

The file is written before anything else happens, and it is done when the rows are gone from the index and
from the shards; a kill in between leaves it for the next command that writes. Then the names go from it too.
"""

import json
from dataclasses import asdict, dataclass, replace

from pipeline.errors import StoreDamagedError
from pipeline.store.location import Location

ERASED = "erased"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of a part."""

    part: str
    row_start: int
    n_chunks: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """One call of ``mirstore forget``.

    Parameters
    ----------
    key
        Of its file.
    spans
        Rows to erase.
    track_ids
        Tracks to remove from the index; emptied when it is done.
    done
        Whether all of it has happened.
    """

    key: str
    spans: tuple[Span, ...]
    track_ids: tuple[str, ...] = ()
    done: bool = False

    def write(self, location: Location) -> None:
        """Write it, atomically."""
        content = {
            "spans": [asdict(span) for span in self.spans],
            "track_ids": list(self.track_ids),
            "done": self.done,
        }
        location.write(self.key, json.dumps(content).encode())

    def finished(self) -> "Erasure":
        """Return it as done, without the names."""
        return replace(self, track_ids=(), done=True)


def erasures(location: Location) -> list[Erasure]:
    """Return every erasure of a store.

    Raises
    ------
    StoreDamagedError
        If the file of one cannot be understood.
    """
    found = []
    for name in location.names(ERASED):
        if name.startswith("."):
            continue
        key = f"{ERASED}/{name}"
        try:
            content = json.loads(location.read(key))
            spans = tuple(Span(**span) for span in content["spans"])
            found.append(Erasure(key, spans, tuple(content["track_ids"]), bool(content["done"])))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreDamagedError(
                f"{location}/{key}: not an erasure ({error}). Restore it from a backup."
            ) from error
    return found


def erased_spans(location: Location) -> set[tuple[str, int]]:
    """Return part and first row of every erased track."""
    return {(span.part, span.row_start) for erasure in erasures(location) for span in erasure.spans}
