"""What was forgotten for good: which rows of which parts, so that not even the past shows them.

    <store>/erased/<id>.json     {"spans": [{"part", "row_start", "n_chunks"}], "blocked": [...],
                                  "contents": {...}, "track_ids": [...], "done": bool}

The file is written before anything else happens, and it is done when the rows are gone from the index and
from the shards; a kill in between leaves it for the next command that writes. Then the names go from it too,
and what stays of them are hashes, by which the next extraction leaves their files alone: `blocked` of the
names, and `contents`, by the hash of the name, of the files, for copies under other names. Many done files
become one.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
# Stage of failure of a file that has the content of a forgotten track.
FORGOTTEN = "forgotten"
# Every plan and every reader reads all files.
DONE_FILES_KEPT = 8
_LISTINGS = 100


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of a part."""

    part: str
    row_start: int
    n_chunks: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """One call of ``mirstore forget``, or several that are done.

    Parameters
    ----------
    key
        Of its file.
    spans
        Rows to erase.
    blocked
        Hashes of the identifiers of tracks that are not to be extracted again.
    contents
        SHA-256 of files that are not to be extracted again, by the hash of the identifier they were forgotten
        under.
    track_ids
        Tracks to remove from the index; emptied when it is done.
    done
        Whether all of it has happened.
    """

    key: str
    spans: tuple[Span, ...]
    blocked: tuple[str, ...]
    contents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    track_ids: tuple[str, ...] = ()
    done: bool = False

    def write(self, location: Location) -> None:
        """Write it, atomically."""
        content = {
            "spans": [asdict(span) for span in self.spans],
            "blocked": list(self.blocked),
            "contents": dict(self.contents),
            "track_ids": list(self.track_ids),
            "done": self.done,
        }
        location.write(self.key, json.dumps(content).encode())


def new_erasure(spans: Iterable[Span], contents: Mapping[str, Iterable[str]]) -> Erasure:
    """Return an erasure that is still to be done.

    Parameters
    ----------
    spans
        Rows to erase.
    contents
        SHA-256 of the files of each track that is to be forgotten.
    """
    return Erasure(
        _new_key(),
        tuple(spans),
        tuple(name_hash(name) for name in contents),
        {name_hash(name): tuple(sorted(set(hashes))) for name, hashes in contents.items()},
        tuple(contents),
    )


def _new_key() -> str:
    return f"{ERASED}/{uuid.uuid4().hex}.json"


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
    missing = ""
    for _ in range(_LISTINGS):
        keys = [f"{ERASED}/{name}" for name in location.names(ERASED) if not name.startswith(".")]
        try:
            return [_erasure(location, key) for key in keys]
        except FileNotFoundError as error:
            missing = str(error)  # merged into one that this listing may lack
    raise StoreDamagedError(f"{location}/{ERASED}: a file is listed, but not there ({missing}).")


def _erasure(location: Location, key: str) -> Erasure:
    try:
        content = json.loads(location.read(key))
        return Erasure(
            key,
            tuple(Span(**span) for span in content["spans"]),
            tuple(content["blocked"]),
            # Stores of earlier versions blocked by name only.
            {name: tuple(hashes) for name, hashes in content.get("contents", {}).items()},
            tuple(content["track_ids"]),
            bool(content["done"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamagedError(
            f"{location}/{key}: not an erasure ({error}). Restore it from a backup."
        ) from error


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


def blocked_contents(location: Location) -> set[str]:
    """Return the SHA-256 of the files of all forgotten tracks."""
    return {
        content for erasure in erasures(location) for found in erasure.contents.values() for content in found
    }


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
    _merge_done(index.location)
    if damage:
        raise damage[0]


def _merge_done(location: Location) -> None:
    """Make one file of those that are done, when there are many; a kill leaves at worst the same thing twice."""
    done = [erasure for erasure in erasures(location) if erasure.done]
    if len(done) <= DONE_FILES_KEPT:
        return
    contents: dict[str, set[str]] = defaultdict(set)
    for erasure in done:
        for name, hashes in erasure.contents.items():
            contents[name].update(hashes)
    Erasure(
        _new_key(),
        tuple(dict.fromkeys(span for erasure in done for span in erasure.spans)),
        tuple(dict.fromkeys(name for erasure in done for name in erasure.blocked)),
        {name: tuple(sorted(hashes)) for name, hashes in contents.items()},
        done=True,
    ).write(location)
    for erasure in done:
        location.delete(erasure.key)


def _complete(index: "Index", erasure: Erasure) -> list[StoreDamagedError]:
    """Do what is still to be done of an erasure; return what keeps it from being done."""
    location = index.location
    damage: list[StoreDamagedError] = []
    rows = index.tracks(["track_id"])["track_id"]
    still_there = sorted(set(rows[rows.isin(erasure.track_ids)]))
    if still_there:
        # The log is kept for ever, so the command as typed, with the names in it, must not be in it.
        index.commit(
            removed=still_there,
            provenance=provenance("mirstore forget"),
            counts={"forgotten": len(still_there)},
        )
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
            track.pop("content_hash", None)
    location.write(f"{part_key(part)}/zarr.json", json.dumps(group).encode())


def _delete_leftovers(index: "Index") -> None:
    """Delete parts that no snapshot names: what killed runs left may hold the tracks, under any name."""
    named = set(index.arrays_since(index.format.oldest_snapshot)["part"])
    for part in index.location.names(PARTS):
        if part not in named:
            index.location.delete(part_key(part))
