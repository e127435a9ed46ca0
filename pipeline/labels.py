"""Labels added from a table: matched to tracks, checked, kept beside what manifests and files say."""

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pandas as pd

from pipeline.errors import CatalogError, UnknownNameError, did_you_mean
from pipeline.label_kinds import TEXT, Clash, clashes, kind_of
from pipeline.label_tables import Finding, LabelTable, label_table, with_text_labels
from pipeline.manifests import header_rows
from pipeline.store.index import Index, writable_index
from pipeline.store.lineage import command_line, provenance
from pipeline.store.places import Place, store_at
from pipeline.store.reading import FeatureStore
from pipeline.store.records import TrackRow, track_rows
from pipeline.store.track_table import LABEL_COLUMNS, label_column

if TYPE_CHECKING:
    pass

SOURCES = dict(zip(LABEL_COLUMNS, ("file tags", "manifest", "added"), strict=True))
_EXAMPLES = 3
_AMBIGUOUS = "paths that several collections have"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What adding labels did, or would do.

    Parameters
    ----------
    by
        The column that names the tracks.
    rows
        Rows of the table.
    labels
        Names of the labels that have values.
    kinds
        What each of them holds: ``text``, ``number``, ``true or false`` or a ``list of ...``.
    tracks
        Tracks that rows name.
    changed
        Those of them whose labels change.
    findings
        What did not fit.
    snapshot
        The new one; None where nothing was written.
    """

    by: str
    rows: int
    labels: tuple[str, ...]
    kinds: dict[str, str]
    tracks: int
    changed: int
    findings: tuple[Finding, ...]
    snapshot: int | None = None


@dataclass(frozen=True, slots=True)
class RemovalReport:
    """What removing labels did: their names, of how many tracks, and the new snapshot."""

    labels: tuple[str, ...]
    tracks: int
    snapshot: int


def add_labels(
    place: Place,
    table: "pd.DataFrame | str | PathLike[str]",
    *,
    by: str | None = None,
    dry_run: bool = False,
) -> LabelReport:
    """Add a table's columns to the labels of a store's tracks, in one commit.

    Cells are merged into what was added before; an empty cell leaves what was there. Labels that were added
    come before those of a manifest, and these before a file's own tags.

    Parameters
    ----------
    place
        A store, or a catalog.
    table
        A frame, or a CSV (UTF-8, comma, with a header) or Parquet file. One column names the tracks, the
        others are labels: text, numbers, booleans, dates (kept as ISO text) or lists of these. A column of a
        CSV that looks like numbers is text where the label is text of other tracks.
    by
        Which column names the tracks; found out where only one of them is there. ``track_id``; ``path``:
        absolute, or below the collection; ``content_hash``: SHA-256 of the file, all tracks of that content.
    dry_run
        Only report.

    Returns
    -------
    LabelReport

    Raises
    ------
    CatalogError
        If the table cannot be read, names no track, has two rows of one track that differ, or a label would be
        of several types: text of some tracks and numbers of others; nothing is written then.
    StoreLockedError
        If another command is writing to the store.
    """
    given = label_table(table, by)
    if dry_run:
        return _merged(Index(store_at(place)), given, table)[1]
    command = command_line("labels add")
    with writable_index(place, command) as index:
        rows, report = _merged(index, given, table)
        if not rows:
            return report
        index.commit(updated=rows, provenance=provenance(command))
        return replace(report, snapshot=index.version)


def remove_labels(place: Place, names: Iterable[str]) -> RemovalReport:
    """Remove added labels from all tracks, in one commit; those of manifests and files stay.

    Parameters
    ----------
    place
        A store, or a catalog.
    names
        Labels.

    Returns
    -------
    RemovalReport

    Raises
    ------
    UnknownNameError
        If no such label was added.
    StoreLockedError
        If another command is writing to the store.
    """
    unwanted = list(dict.fromkeys(names))
    command = command_line("labels remove")
    with writable_index(place, command) as index:
        tracks = index.tracks()
        added = [_parsed(text) for text in tracks["added_labels"]]
        known = set().union(*added)
        for name in unwanted:
            if name not in known:
                raise UnknownNameError(
                    f"no label {name!r} was added.{did_you_mean(name, known)}{_elsewhere(tracks, name)}"
                )
        touched = [number for number, labels in enumerate(added) if not labels.keys().isdisjoint(unwanted)]
        left = [{name: v for name, v in added[number].items() if name not in unwanted} for number in touched]
        index.commit(updated=_relabelled(tracks, touched, left), provenance=provenance(command))
        return RemovalReport(tuple(unwanted), len(touched), index.version)


def labels_table(store: FeatureStore) -> pd.DataFrame:
    """Return the labels of a store's tracks, a row for each name and source.

    Parameters
    ----------
    store
        An open store.

    Returns
    -------
    DataFrame
        `label`, `source` (``file tags``, ``manifest`` or ``added``: later ones come before earlier ones where a
        track has both), `tracks` that have it, `distinct` values, an `example`, and the `column` of
        ``store.tracks`` that holds it. Sorted by label.
    """
    rows = []
    given = store.given_labels
    for column, source in SOURCES.items():
        values: dict[str, Counter[str]] = defaultdict(Counter)
        for text in given[column].dropna():
            for name, value in json.loads(text).items():
                values[name][value if isinstance(value, str) else _encode(value)] += 1
        rows += [
            (name, source, counts.total(), len(counts), next(iter(counts)), label_column(name))
            for name, counts in values.items()
        ]
    table = pd.DataFrame(rows, columns=["label", "source", "tracks", "distinct", "example", "column"])
    return table.sort_values("label", kind="stable", ignore_index=True)


def _elsewhere(tracks: pd.DataFrame, name: str) -> str:
    for column, where in (("labels", "the manifest"), ("file_tags", "the file's own tags")):
        if any(name in _parsed(text) for text in tracks[column]):
            return f" It comes from {where}: change it there."
    return ""


def _parsed(text: Any) -> dict[str, Any]:
    labels: dict[str, Any] = json.loads(text) if isinstance(text, str) else {}
    return labels


def _relabelled(
    tracks: pd.DataFrame, numbers: Sequence[int], labels: Iterable[Mapping[str, Any]]
) -> list[TrackRow]:
    """Return rows of the tracks table with other added labels."""
    texts = pd.array([_encode(given) if given else None for given in labels], dtype="str")
    return track_rows(tracks.iloc[list(numbers)].assign(added_labels=texts))


def _merged(
    index: Index, given: LabelTable, table: "pd.DataFrame | str | PathLike[str]"
) -> tuple[list[TrackRow], LabelReport]:
    """Return the rows that change, and the report."""
    tracks = index.tracks()
    wanted, findings = _matched(tracks, given)
    found = _clashes(tracks, given, wanted)
    as_text = [clash.name for clash in found if clash.other_kind == TEXT]
    if as_text and not isinstance(table, pd.DataFrame) and header_rows(Path(fspath(table))):
        texts = {
            clash.name: f"{clash.name} (text of {clash.track_id}: {clash.other_value!r})"
            for clash in found
            if clash.name in as_text
        }
        given = with_text_labels(given, table, texts)
        wanted, findings = _matched(tracks, given)
        found = _clashes(tracks, given, wanted)
    if found:
        raise CatalogError("\n".join(_told(clash, given) for clash in found))
    names = list(dict.fromkeys(name for labels in given.labels for name in labels))
    values = {name: value for labels in reversed(given.labels) for name, value in labels.items()}
    kinds = {name: (kind_of(values[name]) or TEXT).removeprefix("a ") for name in names}
    before = [_parsed(text) for text in tracks["added_labels"]]
    after = {number: {**before[number], **given.labels[row]} for number, row in wanted.items()}
    changed = [number for number in after if _encode(after[number]) != _encode(before[number])]
    without = [
        track_id
        for number, (track_id, part) in enumerate(zip(tracks["track_id"], tracks["part"], strict=True))
        if isinstance(part, str) and after.get(number, before[number]).keys().isdisjoint(names)
    ]
    if without:
        findings.append(Finding.of("tracks without any of these labels", without))
    hidden = [f"{name}: {label_column(name)}" for name in names if label_column(name) != name]
    if hidden:
        findings.append(
            Finding.of("labels read back under another name, as theirs is a column of every store", hidden)
        )
    rows = _relabelled(tracks, changed, [after[number] for number in changed])
    return rows, LabelReport(
        given.by, len(given.keys), tuple(names), kinds, len(wanted), len(changed), tuple(findings)
    )


def _clashes(tracks: pd.DataFrame, given: LabelTable, wanted: Mapping[int, int]) -> list[Clash]:
    """Return where labels would be of several kinds, as the columns of ``store.tracks`` have them."""
    names = {name for row in wanted.values() for name in given.labels[row]}
    marks = [_encode(name) for name in names]

    def parsed(column: str) -> Iterator[dict[str, Any]]:
        for text in tracks[column]:
            looked_at = isinstance(text, str) and any(mark in text for mark in marks)
            yield _parsed(text) if looked_at else {}

    return clashes(
        given.labels,
        [wanted.get(number) for number in range(len(tracks))],
        tracks["track_id"],
        {SOURCES[column]: parsed(column) for column in reversed(LABEL_COLUMNS)},
    )


def _told(clash: Clash, given: LabelTable) -> str:
    others = f" and {clash.count - 1:,} more" if clash.count > 1 else ""
    return (
        f"{given.source}: row {clash.row + given.first_row}: {clash.name!r} is {clash.kind} ({clash.value!r}), but "
        f"{clash.other_kind} of {clash.track_id} ({clash.other_value!r}, {clash.source})"
        f"{others}. "
        + (
            f"Give one type, or run `mirstore labels remove {clash.name}` first."
            if clash.source == SOURCES["added_labels"]
            else "Give the same type, or another name."
        )
    )


def _matched(tracks: pd.DataFrame, given: LabelTable) -> tuple[dict[int, int], list[Finding]]:
    """Return for each number of a track that the table names the row of its labels, and what did not fit."""
    numbers = _numbers(tracks, given.by)
    wanted: dict[int, int] = {}
    first: dict[str, int] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    conflicts = []
    for row, (key, labels) in enumerate(zip(given.keys, given.labels, strict=True)):
        if not key.strip() or not labels:
            what = (
                "empty rows"
                if not key.strip() and not labels
                else (f"rows without a {given.by}" if labels else "rows without any label")
            )
            problems[what].append(key or f"row {row + given.first_row}")
            continue
        name = _normal(key, given.by)
        found = numbers.get(name, ())
        if len(found) > 1 and given.by == "path" and not _is_whole(name):
            problems[_AMBIGUOUS].append(key)
            found = ()
        elif not found:
            problems[f"rows of unknown tracks, by {given.by}"].append(key)
        # Two paths can lead to one track, so both the key and the track have to be looked at.
        earlier = {first.setdefault(name, row), *(wanted.setdefault(number, row) for number in found)} - {row}
        if any(given.labels[other] != labels for other in earlier):
            conflicts.append(
                f"{key!r} has other labels in row {row + given.first_row} than in row "
                f"{min(earlier) + given.first_row}"
            )
        elif earlier:
            problems["rows that repeat another"].append(key)
    if conflicts:
        more = f", and {len(conflicts) - _EXAMPLES:,} more" if len(conflicts) > _EXAMPLES else ""
        raise CatalogError(
            f"{given.source}: {', '.join(conflicts[:_EXAMPLES])}{more}. Nothing was written; keep one of them."
        )
    if first and not wanted and len(tracks) and _AMBIGUOUS not in problems:
        like = {"track_id": "track_id", "path": "uri", "content_hash": "content_hash"}[given.by]
        raise CatalogError(
            f"{given.source}: none of its rows names a track of the store. "
            f"Expected a {given.by} such as {tracks[like].iloc[0]!r}, got {next(iter(first))!r}."
        )
    return wanted, [*given.findings, *(Finding.of(what, found) for what, found in problems.items())]


def _numbers(tracks: pd.DataFrame, by: str) -> Mapping[str, Sequence[int]]:
    """Return the numbers of the tracks that a key names."""
    numbers: dict[str, list[int]] = defaultdict(list)
    if by != "path":
        for number, key in enumerate(tracks[by].tolist()):
            if isinstance(key, str):
                numbers[key].append(number)
        return numbers
    columns = (tracks[name].tolist() for name in ("track_id", "collection", "uri"))
    for number, (track_id, collection, uri) in enumerate(zip(*columns, strict=True)):
        numbers[uri].append(number)
        numbers[track_id[len(collection) + 1 :]].append(number)
    return numbers


def _normal(key: str, by: str) -> str:
    """Return a key as the index writes it."""
    if by == "content_hash":
        return key.strip().lower().removeprefix("sha256:")
    if by == "track_id" or ("://" in key and not key.startswith("file://")):
        return key
    if key.startswith("file://"):
        key = unquote("/" + key[len("file://") :].partition("/")[2])
    return posixpath.normpath(key)


def _is_whole(path: str) -> bool:
    """Return whether a path names one file whatever the collection."""
    return path.startswith("/") or "://" in path
