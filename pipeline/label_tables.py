"""Tables of labels as they are given: which column names the tracks, and cells as JSON has them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.errors import CatalogError, did_you_mean
from pipeline.label_kinds import first_of_each_kind
from pipeline.manifests import check_names, header_rows, read_table, with_text

KEYS = ("track_id", "path", "content_hash")
SUFFIXES = (".csv", ".parquet")
_SEPARATORS = ";\t|"
_EXAMPLES = 3
_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*")
_EXACT = 2.0**53  # floats below it hold every whole number


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a table of labels that one should know: how many, and a few of them."""

    what: str
    count: int
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, what: str, found: Sequence[str]) -> "Finding":
        """Return it with the first few of what was found as examples."""
        return cls(what, len(found), tuple(found[:_EXAMPLES]))


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table of labels: where it is from, and for each row its key and the labels that are not empty."""

    source: str
    by: str
    keys: list[str]
    labels: list[dict[str, Any]]
    first_row: int
    findings: list[Finding]


def label_table(
    table: "pd.DataFrame | str | PathLike[str]", by: str | None = None, *, text: Sequence[str] = ()
) -> LabelTable:
    """Read a table of labels.

    Parameters
    ----------
    table
        A frame, or a CSV or Parquet file.
    by
        The column that names the tracks; found out where only one of `KEYS` is there.
    text
        Columns of a CSV that are text whatever they look like; types of the others are found out.

    Raises
    ------
    CatalogError
        If it cannot be read, does not name tracks, or holds what is no label.
    """
    if isinstance(table, pd.DataFrame):
        source, first_row, columns = "labels", 0, _arrow(table)
    else:
        file = Path(fspath(table))
        if file.suffix.lower() not in SUFFIXES:
            raise CatalogError(f"{file}: expected a table whose name ends in {' or '.join(SUFFIXES)}.")
        source, first_row, columns = str(file), 1 + header_rows(file), read_table(file, text=[*KEYS, *text])
    names = columns.column_names
    by = _key(names, by, source)
    columns = with_text(columns, by, source)
    others = [name for name in KEYS if name in names and name != by]
    named = [name for name in names if name not in (by, *others)]
    if not named:
        raise CatalogError(f"{source}: there is no column besides {by!r}. Add one for each label.")
    cells = {name: _cells(columns[name], name, source) for name in named}
    labels: list[dict[str, Any]] = [{} for _ in range(columns.num_rows)]
    for name, values in cells.items():
        for row, value in zip(labels, values, strict=True):
            if value is not None:
                row[name] = value
    findings = []
    if others:
        findings.append(Finding.of("columns that name tracks too, no labels", others))
    empty = [name for name, values in cells.items() if all(value is None for value in values)]
    if empty:
        findings.append(Finding.of("columns without any value", empty))
    if first_row:  # a CSV's, whose types were found out
        doubtful = [_first_that_is_no_number(name, values, first_row) for name, values in cells.items()]
        if told := list(filter(None, doubtful)):
            findings.append(Finding.of("columns of text though most of their values are numbers", told))
    return LabelTable(source, by, [key or "" for key in columns[by].to_pylist()], labels, first_row, findings)


def _first_that_is_no_number(name: str, values: Sequence[Any], first_row: int) -> str:
    """Return a column of text with its first value that is none, if most are numbers."""
    words = [(row, value) for row, value in enumerate(values, start=first_row) if isinstance(value, str)]
    others = [(row, value) for row, value in words if not _NUMBER.fullmatch(value)]
    if not others or 2 * len(others) >= len(words):
        return ""
    row, value = others[0]
    return f"{name}: {value!r} in row {row}"


def with_text_labels(
    given: LabelTable, table: "str | PathLike[str]", reasons: Mapping[str, str]
) -> LabelTable:
    """Return a CSV's labels, some as the text that they are in the file: their names, each with why."""
    texts = label_table(table, given.by, text=list(reasons)).labels
    chosen = reasons.keys()
    labels = [
        {name: text[name] if name in chosen else value for name, value in row.items()}
        for row, text in zip(given.labels, texts, strict=True)
    ]
    kept = Finding.of("columns kept as text, as other tracks have it", list(reasons.values()))
    return replace(given, labels=labels, findings=[*given.findings, kept])


def _arrow(frame: pd.DataFrame) -> pa.Table:
    if frame.index.name in KEYS and frame.index.name not in frame.columns:
        frame = frame.reset_index()
    check_names([str(name) for name in frame.columns], "labels")
    for name in frame.columns:
        kinds = first_of_each_kind(frame[name]) if frame[name].dtype == np.dtype(object) else {}
        if len(kinds) > 1:
            found = [f"{kind} in row {row} ({value!r})" for kind, (row, value) in kinds.items()]
            raise CatalogError(f"labels: the column {name!r} holds {' and '.join(found)}. Give it one type.")
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise CatalogError(
            f"labels: a column holds values of several types: {' '.join(str(error).split())}."
        ) from error


def _key(names: Sequence[str], by: str | None, source: str) -> str:
    """Return the column that names the tracks."""
    if by is not None and by not in KEYS:
        raise CatalogError(
            f"labels are added by {', '.join(KEYS[:-1])} or {KEYS[-1]}, not by {by!r}.{did_you_mean(by, KEYS)}"
        )
    found = [name for name in KEYS if name in names and by in (None, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CatalogError(
            f"{source}: {' and '.join(found)} could both name the tracks. Choose one with --by."
        )
    if len(names) == 1 and (separators := [mark for mark in _SEPARATORS if mark in names[0]]):
        raise CatalogError(
            f"{source}: expected columns separated by commas, got the one column {names[0]!r}. Write the file with "
            f"a comma instead of {separators[0]!r}."
        )
    wanted = [by] if by else list(KEYS)
    hints = (did_you_mean(name, wanted) for name in names if name not in KEYS)
    hint = next(filter(None, hints), f" It has: {', '.join(names)}.")
    expected = (
        f"column {by!r}" if by else f"column that names the tracks: {', '.join(KEYS[:-1])} or {KEYS[-1]}"
    )
    raise CatalogError(f"{source}: there is no {expected}.{hint}")


_PLAIN = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal,
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_date, pa.types.is_time, pa.types.is_timestamp,
)  # fmt: skip
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def _cells(column: pa.ChunkedArray, name: str, source: str) -> list[Any]:
    """Return a column's cells as JSON has them, None where they are empty."""
    kind = column.type
    if any(is_list(kind) for is_list in _LISTS):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_plain(kind) for is_plain in _PLAIN):
        raise CatalogError(
            f"{source}: the column {name!r} holds {kind}, expected text, numbers, booleans, dates or lists of them."
        )
    values = [_cell(value) for value in column.to_pylist()]
    numbers = [value for value in values if isinstance(value, float)]
    # A column of whole numbers that lacks some is one of floats in pandas and Parquet.
    if numbers and all(value.is_integer() and abs(value) < _EXACT for value in numbers):
        return [int(value) if isinstance(value, float) else value for value in values]
    return values


def _cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list):
        return [_cell(element) for element in value] or None
    return None if value == "" else value
