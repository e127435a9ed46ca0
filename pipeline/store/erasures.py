"""What was forgotten for good: which rows of which parts, so that not even the past shows them.

    <store>/erased/<id>.json     {"spans": [{"part", "row_start", "n_chunks"}], "blocked": [...],
                                  "track_ids": [...], "done": bool}

The file is written before anything else happens, and it is done when the rows are gone from the index and
from the shards; a kill in between leaves it for the next command that writes. Then the names go from it too,
and what stays of them are hashes, by which the next extraction leaves their files alone.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import StoreDamagedError
from pipeline.store.lineage import provenance
from pipeline.store.location import Location, is_draft
from pipeline.store.parts import PARTS, part_key
from pipeline.store.shard_reader import blank_rows

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.store.index import Index

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
    blocked
        Hashes of the identifiers of tracks that are not to be extracted again.
    track_ids
        Tracks to remove from the index; emptied when it is done.
    done
        Whether all of it has happened.
    """

    key: str
    spans: tuple[Span, ...]
    blocked: tuple[str, ...]
    track_ids: tuple[str, ...] = ()
    done: bool = False

    def write(self, location: Location) -> None:
        """Write it, atomically."""
        content = {
            "spans": [asdict(span) for span in self.spans],
            "blocked": list(self.blocked),
            "track_ids": list(self.track_ids),
            "done": self.done,
        }
        location.write(self.key, json.dumps(content).encode())


def new_erasure(spans: Iterable[Span], track_ids: Sequence[str]) -> Erasure:
    """Return an erasure that is still to be done."""
    key = f"{ERASED}/{uuid.uuid4().hex}.json"
    return Erasure(key, tuple(spans), tuple(name_hash(name) for name in track_ids), tuple(track_ids))


def name_hash(track_id: str) -> str:
    """Return by what a forgotten track is recognised."""
    return hashlib.sha256(track_id.encode()).hexdigest()


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
            blocked, track_ids = tuple(content["blocked"]), tuple(content["track_ids"])
            found.append(Erasure(key, spans, blocked, track_ids, bool(content["done"])))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreDamagedError(
                f"{location}/{key}: not an erasure ({error}). Restore it from a backup."
            ) from error
    return found


def erased_spans(location: Location) -> set[tuple[str, int]]:
    """Return part and first row of every erased track."""
    return {(span.part, span.row_start) for erasure in erasures(location) for span in erasure.spans}


def unerased(rows: "pd.DataFrame", erased: Collection[tuple[str, int]]) -> "pd.DataFrame":
    """Return rows of the ``tracks`` table, with `part` and `row_start`, but for those of erased tracks."""
    suspect = rows["part"].isin({part for part, _ in erased}).to_numpy(dtype=bool)
    suspects = rows.loc[suspect, ["part", "row_start"]].itertuples(index=False)
    kept = ~suspect
    kept[suspect] = [tuple(span) not in erased for span in suspects]
    return rows[kept]


def blocked_hashes(location: Location) -> set[str]:
    """Return the hashes of the identifiers of all forgotten tracks."""
    return {name for erasure in erasures(location) for name in erasure.blocked}


def complete_erasures(index: "Index") -> None:
    """Do what is still to be done of every erasure; to be called by whoever holds the lock.

    Raises
    ------
    StoreDamagedError
        If a shard's index cannot be read; all else is done then.
    """
    damage: list[StoreDamagedError] = []
    for erasure in erasures(index.location):
        if not erasure.done:
            damage += _complete(index, erasure)
    if damage:
        raise damage[0]


def _complete(index: "Index", erasure: Erasure) -> list[StoreDamagedError]:
    """Do what is still to be done of an erasure; return what keeps it from being done."""
    location = index.location
    damage: list[StoreDamagedError] = []
    rows = index.tracks(["track_id"])["track_id"]
    still_there = sorted(set(rows[rows.isin(erasure.track_ids)]))
    if still_there:
        # The log is kept for ever, so the command as typed, with the names in it, must not be in it.
        index.commit(removed=still_there, provenance=provenance("mirstore forget"))
    by_part: dict[str, list[Span]] = defaultdict(list)
    for span in erasure.spans:
        by_part[span.part].append(span)
    for part, spans in by_part.items():
        try:
            _erase(location, part, spans)
        except StoreDamagedError as error:
            damage.append(error)
    _delete_leftovers(index)
    for name in location.names(ERASED):
        if is_draft(name):  # of a command that was killed; it names tracks
            location.delete(f"{ERASED}/{name}")
    if not damage:
        replace(erasure, track_ids=(), done=True).write(location)
    return damage


def _erase(location: Location, part: str, spans: Sequence[Span]) -> None:
    """Erase rows from every array of a part, and the names of their tracks from its attributes."""
    for stored in list(location.walk(part_key(part))):
        if is_draft(stored.key):
            location.delete(stored.key)
    rows = [row for span in spans for row in range(span.row_start, span.row_start + span.n_chunks)]
    for name in location.names(part_key(part)):
        if "@" in name:
            if location.exists(f"{part_key(part)}/{name}/zarr.json"):
                blank_rows(location, part, name, rows)
            else:  # left by a killed run
                location.delete(f"{part_key(part)}/{name}")
    try:
        group = json.loads(location.read(f"{part_key(part)}/zarr.json"))
    except FileNotFoundError:  # removed by gc since
        return
    starts = {span.row_start for span in spans}
    for track in group["attributes"]["tracks"]:
        if track["row_start"] in starts:
            track["track_id"] = None
    location.write(f"{part_key(part)}/zarr.json", json.dumps(group).encode())


def _delete_leftovers(index: "Index") -> None:
    """Delete parts that no snapshot names: what killed runs left may hold the tracks, under any name."""
    named = set(index.arrays_since(index.format.oldest_snapshot)["part"])
    for part in index.location.names(PARTS):
        if part not in named:
            index.location.delete(part_key(part))
