"""Taking away: tracks whose file has gone, tracks that are to be forgotten, versions of features."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from pipeline.errors import StoreDamagedError, StoreError, UnknownNameError, did_you_mean
from pipeline.store.erasures import (
    Span,
    complete_erasures,
    erased_spans,
    erasures,
    name_hash,
    new_erasure,
    unerased,
)
from pipeline.store.index import TRACKS_SCHEMA, Index, matching, writable_index
from pipeline.store.lineage import command_line, provenance
from pipeline.store.location import Location
from pipeline.store.parts import part_group
from pipeline.store.reading import check_collection
from pipeline.store.versions import models_by_feature

READERS = 16
_SPAN = ["track_id", "part", "row_start", "n_chunks"]
_SPAN_SCHEMA = pa.schema([TRACKS_SCHEMA.field(name) for name in _SPAN])


def prune(place: "str | Location", *, collection: str | None = None, dry_run: bool = False) -> list[str]:
    """Remove the tracks whose file has gone; older snapshots still have them.

    Parameters
    ----------
    place
        Of the store.
    collection
        Only of this collection; None for all.
    dry_run
        Only report.

    Returns
    -------
    list of str
        Identifiers of the tracks, sorted. Their bytes go with ``mirstore compact`` and ``mirstore gc``.

    Raises
    ------
    UnknownNameError
        If there is no such collection.
    StoreLockedError, StoreWriteError
        If the store cannot be written.
    """
    with writable_index(place, command_line("prune")) as index:
        rows = index.tracks(["track_id", "collection", "status"])
        gone = rows["status"] == "gone"
        if collection is not None:
            check_collection(index.location, collection, rows["collection"])
            gone &= rows["collection"] == collection
        names = sorted(rows.loc[gone, "track_id"])
        if names and not dry_run:
            index.commit(removed=names, provenance=provenance(command_line("prune")))
    return names


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What ``mirstore forget`` did: identifiers, and how many chunks of how many parts were erased."""

    track_ids: tuple[str, ...]
    chunks: int
    parts: int


def forget(place: "str | Location", track_ids: Sequence[str]) -> Forgotten:
    """Delete tracks for good: their rows in every part, in every snapshot.

    The next extraction leaves their files alone, until `allow` is called. Their names and labels stay in the
    tables of older snapshots until ``mirstore gc`` removes these.

    Parameters
    ----------
    place
        Of the store.
    track_ids
        Identifiers.

    Raises
    ------
    UnknownNameError
        If the store has no such track, nor had in a snapshot that is kept; then nothing is forgotten.
    StoreLockedError, StoreWriteError, StoreDamagedError
        If the store cannot be written, or a shard's index cannot be read; the next command that writes does
        what is left, once the shard is mended.
    """
    with writable_index(place, "mirstore forget") as index:
        history = _history(index, track_ids)
        known = set(index.tracks(["track_id"])["track_id"])
        for name in sorted(set(track_ids) - known):  # one that was pruned is in the past only
            now = sorted(known & _names_ever(history, {name}))
            if now or not history["track_id"].eq(name).any():
                hint = f" It is {now[0]!r} now." if now else did_you_mean(name, known)
                raise UnknownNameError(
                    f"{index.location} has no track {name!r}.{hint} Nothing was forgotten."
                )
        spans = _spans_ever(index, history, set(track_ids))
        new_erasure(spans, sorted(set(track_ids))).write(index.location)
        complete_erasures(index)
    return Forgotten(
        tuple(sorted(set(track_ids))),
        sum(span.n_chunks for span in spans),
        len({span.part for span in spans}),
    )


def allow(place: "str | Location", track_ids: Sequence[str]) -> None:
    """Let the next extraction take forgotten tracks again, as new ones.

    Raises
    ------
    UnknownNameError
        If one of them was not forgotten.
    """
    with writable_index(place, "mirstore forget --allow") as index:
        recorded = erasures(index.location)
        for name in track_ids:
            if not any(name_hash(name) in erasure.blocked for erasure in recorded):
                raise UnknownNameError(f"{name!r} was not forgotten in {index.location}.")
        hashes = {name_hash(name) for name in track_ids}
        for erasure in recorded:
            blocked = tuple(name for name in erasure.blocked if name not in hashes)
            if blocked != erasure.blocked:
                replace(erasure, blocked=blocked).write(index.location)


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
        history = history.drop_duplicates(["track_id", "part", "row_start"])
        history = history.assign(span=list(zip(history["part"], history["row_start"], strict=True)))
        found_names = _names_ever(history, names)
        found_parts = set(history.loc[history["track_id"].isin(found_names), "part"])
        if found_names <= names and found_parts <= parts:
            return history
        names, parts = names | found_names, parts | found_parts
        described = pd.concat([described, _described(index, parts - read)], ignore_index=True)
        read = read | parts


def _names_ever(history: pd.DataFrame, track_ids: set[str]) -> set[str]:
    """Return tracks and the other names of theirs: a moved track had the same rows under another name."""
    names = set(track_ids)
    while True:
        found = history[history["track_id"].isin(names)]
        aliases = set(history.loc[history["span"].isin(set(found["span"])), "track_id"])
        if aliases <= names:
            return names
        names |= aliases


def _spans_ever(index: Index, history: pd.DataFrame, track_ids: set[str]) -> list[Span]:
    """Return all rows that tracks have, or had under this or another name, in any snapshot."""
    found = history[history["track_id"].isin(_names_ever(history, track_ids))]
    others = index.tracks(_SPAN, parts=set(found["part"]))
    others = others[~others["track_id"].isin(track_ids) & others["part"].notna()]
    kept = set(zip(others["part"], others["row_start"], strict=True))
    found = found[~found["span"].isin(kept)].drop_duplicates(["part", "row_start"])
    return [
        Span(str(part), int(start), int(count))
        for part, start, count in zip(found["part"], found["row_start"], found["n_chunks"], strict=True)
    ]


def _rows_of_tables(index: Index, wanted: Mapping[str, Collection[str]]) -> Iterator[pd.DataFrame]:
    """Return some rows of every file of the ``tracks`` table, superseded ones too."""
    for stored in index.location.walk("tracks"):
        if stored.key.endswith(".parquet") and "/_delta_log/" not in stored.key:
            with index.location.native_file(stored.key) as source:
                yield matching(parquet.ParquetFile(source), _SPAN_SCHEMA, wanted).to_pandas()


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
    """Return what parts say of their rows: who had them when they were written.

    Parts know of rows whose track was extracted again or failed halfway, after ``mirstore gc`` has removed
    the files of the table that did.
    """

    def rows(part: str) -> list[tuple[str, str, int, int]]:
        try:
            tracks = part_group(index.location, part)["tracks"]
        except StoreDamagedError:
            return []
        return [
            (track["track_id"], part, track["row_start"], track["n_chunks"])
            for track in tracks
            if track["track_id"] is not None
        ]

    names = sorted(parts)
    pieces = [pd.DataFrame(columns=_SPAN)]
    with ThreadPoolExecutor(READERS) as pool:  # what takes time in a bucket is waiting
        for start in range(0, len(names), 1024):
            found = [row for some in pool.map(rows, names[start : start + 1024]) for row in some]
            pieces.append(pd.DataFrame(found, columns=_SPAN))
    return pd.concat(pieces, ignore_index=True)


def drop(
    place: "str | Location",
    version: str,
    *,
    wanted: Sequence[str] = (),
    force: bool = False,
) -> tuple[str, str, int]:
    """Drop one version of a feature; its bytes go with ``mirstore gc``.

    Parameters
    ----------
    place
        Of the store.
    version
        ``feature@fingerprint``.
    wanted
        Fingerprints that the catalog asks for.
    force
        Drop it even if the catalog asks for it or models use it.

    Returns
    -------
    feature, fingerprint : str
    bytes : int

    Raises
    ------
    UnknownNameError
        If the store has no such version.
    StoreError
        If it is in use, or all that some tracks have.
    """
    name, _, fingerprint = version.partition("@")
    with writable_index(place, command_line("drop")) as index:
        arrays = index.arrays(["part", "feature", "fingerprint", "bytes"])
        versions = sorted(set(arrays["feature"] + "@" + arrays["fingerprint"]))
        if not fingerprint or version not in versions:
            matching = [known for known in versions if known.partition("@")[0] == name]
            hint = f" It has {', '.join(matching)}." if matching else did_you_mean(version, versions)
            raise UnknownNameError(f"{index.location} has no version {version!r}.{hint}")
        if fingerprint in wanted and not force:
            raise StoreError(
                f"{version} is what the catalog asks for, and the next extraction would compute it again. "
                "Take it out of the catalog, or use --force."
            )
        models = models_by_feature(index.location)[0].get(fingerprint)
        if models and not force:
            raise StoreError(f"{version} is used by {', '.join(models)}. Remove these first, or use --force.")
        others = set(arrays.loc[arrays["fingerprint"] != fingerprint, "part"])
        tracks = index.tracks(["part"])["part"].dropna()
        alone = int((~tracks.isin(others)).sum())
        if alone:
            raise StoreError(
                f"{version} is all that {alone} tracks have. Extract another version first, or `prune` or "
                "`forget` the tracks."
            )
        size = int(arrays.loc[arrays["fingerprint"] == fingerprint, "bytes"].sum())
        index.commit(
            dropped=f"fingerprint = '{fingerprint}'", provenance=provenance(command_line(f"drop {version}"))
        )
    return name, fingerprint, size
