"""Tracks through all snapshots: the names they had, the rows, the content of their files."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pipeline.errors import UnknownNameError, did_you_mean
from pipeline.store.erasures import Span
from pipeline.store.index import Index

_EXAMPLES = 3


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
    history
        All rows that tracks had in any snapshot, but for erased ones: `track_id`, `part`, `row_start`,
        `n_chunks`, `content_hash`, and `span`, the pair of part and first row.
    wanted
        Identifiers.
    """

    def __init__(self, index: Index, history: pd.DataFrame, wanted: set[str]) -> None:
        self.index, self.wanted = index, wanted
        self.now = index.tracks(["track_id", "part", "row_start", "content_hash"])
        # Of a million tracks only a few are looked at.
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
        unknown, hint = [], ""
        for name in sorted(self.wanted - known):  # one that was pruned is in the past only
            now = sorted(known & self.names(name))
            if now or name not in self.spans_of:
                unknown.append(name)
                hint = hint or (f" {name!r} is {now[0]!r} now." if now else did_you_mean(name, known))
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


def names_ever(history: pd.DataFrame, track_ids: set[str]) -> set[str]:
    """Return tracks and the other names of theirs."""
    names = set(track_ids)
    while True:
        found = history[history["track_id"].isin(names)]
        aliases = set(history.loc[history["span"].isin(set(found["span"])), "track_id"])
        if aliases <= names:
            return names
        names |= aliases
