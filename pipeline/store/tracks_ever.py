"""Tracks through all snapshots: the names they had, the rows, the content of their files."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from pipeline.errors import StoreDamagedError, UnknownNameError, did_you_mean
from pipeline.store.erasures import Span, erased_spans, erasures, name_hash, unerased
from pipeline.store.index import Index
from pipeline.store.parts import part_group
from pipeline.store.tables import TRACKS_SCHEMA, matching

READERS = 16
_EXAMPLES = 3
_PAST = ["track_id", "part", "row_start", "n_chunks", "content_hash"]
_SCHEMA = pa.schema([TRACKS_SCHEMA.field(name) for name in _PAST])


@dataclass(frozen=True, slots=True)
class ForgottenTrack:
    """What is erased of one track.

    Parameters
    ----------
    track_id
        As it was asked for.
    other_names
        Other identifiers that the erased rows had at some time.
    chunks
        How many are erased, of all versions of its file.
    parts
        In which they lie.
    copies
        Tracks of the same content, not asked for, which stay.
    """

    track_id: str
    other_names: tuple[str, ...]
    chunks: int
    parts: tuple[str, ...]
    copies: tuple[str, ...]


class TracksEver:
    """Some tracks, under the names they have and had, with all their rows that no other track has now.

    Parameters
    ----------
    index
        Newest snapshot.
    wanted
        Identifiers.
    """

    def __init__(self, index: Index, wanted: set[str]) -> None:
        self.index, self.wanted = index, wanted
        self.now = index.tracks(["track_id", "part", "row_start", "content_hash"])
        history = _history(index, wanted)
        self.history = history[history["track_id"].isin(names_ever(history, wanted))]
        self.spans_of: Mapping[str, set[tuple[str, int]]] = defaultdict(set)
        self.names_of: Mapping[tuple[str, int], set[str]] = defaultdict(set)
        for name, span in zip(self.history["track_id"], self.history["span"], strict=True):
            self.spans_of[name].add(span)
            self.names_of[span].add(name)
        others = self.now[~self.now["track_id"].isin(wanted) & self.now["part"].notna()]
        kept = set(zip(others["part"], others["row_start"], strict=True))
        erased = self.history[~self.history["span"].isin(kept)]
        self.lengths = dict(zip(erased["span"], erased["n_chunks"].astype(int), strict=True))
        self.hashes: Mapping[tuple[str, int], set[str]] = defaultdict(set)
        known = erased[erased["content_hash"].notna()]
        for span, content in zip(known["span"], known["content_hash"], strict=True):
            self.hashes[span].add(content)
        known = self.now[self.now["track_id"].isin(wanted) & self.now["content_hash"].notna()]
        self.own_hash = dict(zip(known["track_id"], known["content_hash"], strict=True))
        contents = {content for name in wanted for content in self.contents(name)}
        copies = others[others["content_hash"].isin(contents)]
        self.copies: Mapping[str, set[str]] = defaultdict(set)
        for name, content in zip(copies["track_id"], copies["content_hash"], strict=True):
            self.copies[content].add(name)

    def check(self) -> None:
        """Raise `UnknownNameError` where one of the tracks is not there, nor was."""
        known = set(self.now["track_id"])
        blocked = {name for erasure in erasures(self.index.location) for name in erasure.blocked}
        unknown, hint = [], ""
        for name in sorted(self.wanted - known):  # one that was pruned is in the past only
            now = sorted(known & self.names(name))
            if now or name not in self.spans_of:
                unknown.append(name)
                if now:
                    hint = hint or f" {name!r} is {now[0]!r} now."
                elif name_hash(name) in blocked:
                    hint = hint or f" {name!r} was already forgotten."
                else:
                    hint = hint or did_you_mean(name, known)
        if unknown:
            more = f" and {len(unknown) - _EXAMPLES:,} more" if len(unknown) > _EXAMPLES else ""
            named = ", ".join(map(repr, unknown[:_EXAMPLES]))
            raise UnknownNameError(
                f"{self.index.location} has no track {named}{more}.{hint} Nothing was forgotten."
            )

    def names(self, track_id: str) -> set[str]:
        """Return the track and the other names of its: a moved track had the same rows under another name."""
        names, new = {track_id}, [track_id]
        while new:
            spans = self.spans_of.get(new.pop(), ())
            found = {name for span in spans for name in self.names_of[span]} - names
            names |= found
            new += found
        return names

    def own_spans(self, track_id: str) -> set[tuple[str, int]]:
        """Return part and first row of all that is erased with a track."""
        found = {span for name in self.names(track_id) for span in self.spans_of.get(name, ())}
        return found & self.lengths.keys()

    def contents(self, track_id: str) -> set[str]:
        """Return the SHA-256 of all that its file was."""
        own = {self.own_hash[track_id]} if track_id in self.own_hash else set()
        return own.union(*(self.hashes[span] for span in self.own_spans(track_id)))

    def of(self, track_id: str) -> ForgottenTrack:
        """Return what is erased of a track."""
        spans = self.own_spans(track_id)
        names = {name for span in spans for name in self.names_of[span]} - {track_id}
        copies = {name for content in self.contents(track_id) for name in self.copies.get(content, ())}
        return ForgottenTrack(
            track_id,
            tuple(sorted(names)),
            sum(self.lengths[span] for span in spans),
            tuple(sorted({part for part, _ in spans})),
            tuple(sorted(copies)),
        )

    @property
    def spans(self) -> list[Span]:
        """All rows to erase."""
        return [Span(str(part), int(start), count) for (part, start), count in self.lengths.items()]


def _history(index: Index, track_ids: Collection[str]) -> pd.DataFrame:
    """Return all rows that tracks had, under any name, in any snapshot, but for those that were erased.

    Whose rows else lie in parts of theirs is among it.
    """
    names, parts = set(track_ids), set[str]()
    erased = erased_spans(index.location)
    read = _parts_with_dead_rows(index)
    described = _described(index, read)
    while True:
        wanted = {"track_id": names, "part": parts}
        known = described["track_id"].isin(names) | described["part"].isin(parts)
        history = pd.concat([*_rows_of_tables(index, wanted), described[known]], ignore_index=True)
        history = unerased(history[history["part"].notna()], erased)
        history = history.drop_duplicates(["track_id", "part", "row_start", "content_hash"])
        history = history.assign(span=list(zip(history["part"], history["row_start"], strict=True)))
        found_names = names_ever(history, names)
        found_parts = set(history.loc[history["track_id"].isin(found_names), "part"])
        if found_names <= names and found_parts <= parts:
            return history
        names, parts = names | found_names, parts | found_parts
        described = pd.concat([described, _described(index, parts - read)], ignore_index=True)
        read = read | parts


def _rows_of_tables(index: Index, wanted: Mapping[str, Collection[str]]) -> Iterator[pd.DataFrame]:
    """Return some rows of every file of the ``tracks`` table, superseded ones too."""
    for stored in index.location.walk("tracks"):
        if stored.key.endswith(".parquet") and "/_delta_log/" not in stored.key:
            with index.location.native_file(stored.key) as source:
                yield matching(parquet.ParquetFile(source), _SCHEMA, wanted).to_pandas()


def _parts_with_dead_rows(index: Index) -> set[str]:
    """Return parts of any snapshot that have rows of which the newest snapshot and the erasures do not know.

    Of the rows of all others everything is known: what else is said of them can only be another name.
    """
    live = index.tracks(["part", "row_start", "n_chunks"])
    erased = [
        (span.part, span.row_start, span.n_chunks)
        for erasure in erasures(index.location)
        for span in erasure.spans
    ]
    known = pd.concat([live[live["part"].notna()], pd.DataFrame(erased, columns=live.columns)])
    known = known.drop_duplicates(["part", "row_start"]).groupby("part")["n_chunks"].sum()
    rows = index.arrays(["part", "rows"]).groupby("part")["rows"].max()
    whole = set(rows.index[known.reindex(rows.index).fillna(0) >= rows])
    return set(index.arrays_since(index.format.oldest_snapshot)["part"]) - whole


def _described(index: Index, parts: Collection[str]) -> pd.DataFrame:
    """Return what parts say of their rows: who had them when they were written, of which file.

    Parts know of rows whose track was extracted again or failed halfway, after ``mirstore gc`` has removed
    the files of the table that did.
    """

    def rows(part: str) -> list[tuple[str, str, int, int, str | None]]:
        try:
            tracks = part_group(index.location, part)["tracks"]
        except StoreDamagedError:
            return []
        return [
            (track["track_id"], part, track["row_start"], track["n_chunks"], track.get("content_hash"))
            for track in tracks
            if track["track_id"] is not None
        ]

    names = sorted(parts)
    pieces = [pd.DataFrame(columns=_PAST)]
    with ThreadPoolExecutor(READERS) as pool:  # what takes time in a bucket is waiting
        for start in range(0, len(names), 1024):
            found = [row for some in pool.map(rows, names[start : start + 1024]) for row in some]
            pieces.append(pd.DataFrame(found, columns=_PAST))
    return pd.concat(pieces, ignore_index=True)


def names_ever(history: pd.DataFrame, track_ids: set[str]) -> set[str]:
    """Return tracks and the other names of theirs."""
    names = set(track_ids)
    while True:
        found = history[history["track_id"].isin(names)]
        aliases = set(history.loc[history["span"].isin(set(found["span"])), "track_id"])
        if aliases <= names:
            return names
        names |= aliases
