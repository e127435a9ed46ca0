"""The tracks as a table: labels become columns, and some rows are chosen by what they hold."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.tables import TRACKS_SCHEMA

if TYPE_CHECKING:
    from pipeline.store.reading import FeatureStore

LABEL_COLUMNS = ("file_tags", "labels", "added_labels")
OF_FAILURES = ("stage", "reason")
# Columns of `FeatureStore.tracks` that no label hides.
TRACK_COLUMNS = tuple(name for name in TRACKS_SCHEMA.names if name not in (*LABEL_COLUMNS, *OF_FAILURES))


def label_column(name: str) -> str:
    """Return the column of `FeatureStore.tracks` that holds a label: no two labels have the same."""
    core = name
    while core.startswith("label_"):
        core = core.removeprefix("label_")
    return f"label_{name}" if core in TRACK_COLUMNS else name


def with_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn the JSON of labels into columns; a label named as a column of the index is prefixed."""
    sources = [rows[name] for name in LABEL_COLUMNS if rows[name].notna().any()]
    rows = rows.drop(columns=list(LABEL_COLUMNS))
    if not sources:
        return rows
    merged: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    for source in sources:
        numbers = np.flatnonzero(source.notna())
        # All at once: a call a text takes three times as long.
        found = json.loads(f"[{','.join(source.iloc[numbers])}]")
        for number, known in zip(numbers, found, strict=True):
            merged[number].update(known)
    labels = pd.DataFrame(merged, index=rows.index)
    labels = labels.rename(columns=label_column)
    return pd.concat([rows, labels], axis=1)


def truncated_tracks(store: "FeatureStore") -> pd.DataFrame:
    """Return the tracks that lack a part of their audio, by `track_id`: `uri` and one line of `reason`."""
    rows = store.placed_rows(["track_id", "uri", "truncated"])
    rows = rows[rows["truncated"].notna()].rename(columns={"truncated": "reason"})
    return rows.set_index("track_id").sort_index()


def has_any(column: "pd.Series[Any]", values: Sequence[Any]) -> NDArray[np.bool_]:
    """Return where a column has one of some values, or a list with one of them in it."""
    lists = np.array([isinstance(cell, list) for cell in column], dtype=bool)
    found = np.zeros(len(column), dtype=bool)
    found[~lists] = column[~lists].isin(values)
    found[lists] = [any(value in cell for value in values) for cell in column[lists]]
    return found


def queried(tracks: pd.DataFrame, query: str) -> pd.DataFrame:
    """Return the tracks for which a condition on their columns holds.

    Raises
    ------
    StoreError
        If it cannot be understood.
    """
    try:
        found: pd.DataFrame = tracks.query(query, engine="python", level=2)  # variables of `select`'s caller
        return found
    except Exception as error:  # whatever a wrong expression raises in pandas
        reason = " ".join(str(error).split())
        raise StoreError(
            f"cannot select by {query!r}: {reason}. Columns are {', '.join(tracks.columns)}."
        ) from error
