"""Kinds of labels: all values of one label are text, or numbers, or..., so that its column can be compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

TEXT = "text"
_NUMBER = "a number"
_LISTS = {TEXT: "a list of text", _NUMBER: "a list of numbers"}


@dataclass(frozen=True, slots=True)
class Clash:
    """A label whose values would be of two kinds.

    Parameters
    ----------
    name
        Of the label.
    row
        The table's first row with a value of it, counted from 0.
    value, kind
        What it holds.
    track_id, source, other_value, other_kind
        A track that has another kind, from where, and what.
    count
        How many tracks do.
    """

    name: str
    row: int
    value: Any
    kind: str
    track_id: str
    source: str
    other_value: Any
    other_kind: str
    count: int


def kind_of(value: Any) -> str | None:
    """Return the kind of a label's value; None for what is missing, and for what is no label.

    Examples
    --------
    >>> kind_of("7"), kind_of(7), kind_of([0.5]), kind_of(None)
    ('text', 'a number', 'a list of numbers', None)
    """
    if isinstance(value, list | tuple | np.ndarray):
        kinds = [kind for kind in map(kind_of, value) if kind is not None]
        return _LISTS.get(kinds[0], "a list") if kinds else None
    if isinstance(value, bool | np.bool_):
        return "true or false"
    if isinstance(value, Real | Decimal):
        return _NUMBER if value == value else None  # pandas has NaN for what is missing
    return TEXT if isinstance(value, str | date | time) else None


def clashes(
    given: Sequence[Mapping[str, Any]],
    rows: Sequence[int | None],
    track_ids: Iterable[str],
    known: Mapping[str, Iterable[Mapping[str, Any]]],
) -> list[Clash]:
    """Return where labels would be of several kinds.

    Parameters
    ----------
    given
        New labels, by row of their table; those of one name are of one kind.
    rows
        For each track its row, or None.
    track_ids
        Of each track.
    known
        For each source of labels, those that come first first: the labels of each track.
    """
    first: dict[str, tuple[int, Any, str]] = {}
    for row in sorted({row for row in rows if row is not None}):
        for name, value in given[row].items():
            if name not in first and (kind := kind_of(value)) is not None:
                first[name] = row, value, kind
    found: dict[str, Clash] = {}
    counts = dict.fromkeys(first, 0)
    for row, track_id, *labels in zip(rows, track_ids, *known.values(), strict=True):
        open_names = first.keys() - (given[row].keys() if row is not None else ())
        for source, own in zip(known, labels, strict=True):
            for name in open_names & own.keys():
                other = kind_of(own[name])
                if other is not None and other != first[name][2]:
                    counts[name] += 1
                    found.setdefault(name, Clash(name, *first[name], track_id, source, own[name], other, 0))
            open_names -= own.keys()
    return [replace(clash, count=counts[name]) for name, clash in found.items()]


def first_of_each_kind(values: Iterable[Any]) -> dict[str, tuple[int, Any]]:
    """Return for each kind among values the number of the first, and itself."""
    found: dict[str, tuple[int, Any]] = {}
    for number, value in enumerate(values):
        if (kind := kind_of(value)) is not None:
            found.setdefault(kind, (number, value))
    return found
