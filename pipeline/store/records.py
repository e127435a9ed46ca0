"""Rows of the index, as jobs report them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrackRow:
    """One row of the ``tracks`` table: what a track is, where its rows lie, how it went.

    `status` is ``ok``, ``failed`` or ``gone`` (the file is no longer there; its features still are).
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
