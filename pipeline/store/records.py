"""Rows of the index, as jobs report them."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class TrackRow:
    """One row of the ``tracks`` table: what a track is, where its rows lie, how it went.

    `status` is ``ok``, ``failed`` or ``gone`` (its collection no longer has it; its features are still there).
    `labels` (of a manifest), `file_tags` (of the file) and `added_labels` (of ``mirstore labels add``) are
    JSON objects.
    """

    track_id: str
    collection: str
    uri: str
    size: int
    mtime_ns: int
    status: str
    labels: str | None = None
    content_hash: str | None = None
    stage: str | None = None
    reason: str | None = None
    truncated: str | None = None
    codec: str | None = None
    decoder: str | None = None
    source_rate: int | None = None
    channels: int | None = None
    peak: float | None = None
    n_samples: int | None = None
    duration_s: float | None = None
    part: str | None = None
    row_start: int | None = None
    n_chunks: int | None = None
    file_tags: str | None = None
    added_labels: str | None = None


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """A complete array of a part: one row of the index's ``arrays`` table."""

    part: str
    feature: str
    fingerprint: str
    kind: str
    array: str
    rows: int
    bytes: int
    dtype: str
    row_shape: str
    parameters: str
    computed_with: str


def track_rows(frame: "pd.DataFrame") -> list[TrackRow]:
    """Return the rows of a frame as the ``tracks`` table holds them, in order.

    Parameters
    ----------
    frame
        With a column a field of `TrackRow`, as `Index.tracks` gives it; what is missing becomes None, and whole
        numbers that a join made floats become whole again.
    """
    columns: list[list[Any]] = []
    for column in fields(TrackRow):
        annotation: Any = column.type
        kind = getattr(annotation, "__args__", (annotation,))[0]
        cells = frame[column.name]
        pairs = zip(cells.tolist(), cells.isna().tolist(), strict=True)
        columns.append([None if missing else kind(cell) for cell, missing in pairs])
    return [TrackRow(*cells) for cells in zip(*columns, strict=True)]
