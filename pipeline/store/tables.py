"""Delta Lake tables: rows in, frames out, by way of Arrow's own files."""

import functools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import parquet

from pipeline.errors import StoreWriteError, UnknownNameError
from pipeline.store.folder import REFUSALS
from pipeline.store.location import Location
from pipeline.store.records import ArrayRow, TrackRow

LOG = "_delta_log"
SHOWN_OF_AN_ERROR = 160  # characters
_ROWS_A_PIECE = 65_536


def _schema(row: type) -> pa.Schema:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    columns = []
    for column in fields(row):
        kind: Any = column.type
        options = getattr(kind, "__args__", (kind,))
        columns.append(pa.field(column.name, kinds[options[0]], nullable=type(None) in options))
    return pa.schema(columns)


TRACKS_SCHEMA = _schema(TrackRow)
ARRAYS_SCHEMA = _schema(ArrayRow)


def table_of(rows: Sequence[TrackRow] | Sequence[ArrayRow], schema: pa.Schema) -> pa.Table:
    """Return rows as a table."""
    # Column by column: `asdict` copies every cell deeply.
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def table_frame(
    location: Location,
    name: str,
    table: DeltaTable,
    schema: pa.Schema,
    columns: Sequence[str],
    parts: Collection[str] | None = None,
) -> pd.DataFrame:
    """Return columns of a table, read file by file; those that an older format lacks are missing."""
    wanted = pa.schema([schema.field(column) for column in columns])
    pieces = [wanted.empty_table()]
    for uri in reversed(table.file_uris()):  # the log lists the newest first
        # Not `DeltaTable.to_pyarrow_table`: its files are in Python, see `Location.native_file`.
        with location.native_file(f"{name}/{uri.rpartition('/')[2]}") as source:
            file = parquet.ParquetFile(source)
            have = [column for column in columns if column in file.schema_arrow.names]
            if parts is None:
                piece = file.read(columns=have)
            else:
                piece = matching(file, pa.schema([wanted.field(name) for name in have]), {"part": parts})
        for field in wanted:
            if field.name not in have:
                piece = piece.append_column(field.name, pa.nulls(len(piece), field.type))
        pieces.append(piece.select(columns).cast(wanted))
    return pandas_frame(pa.concat_tables(pieces).combine_chunks())


def matching(file: parquet.ParquetFile, schema: pa.Schema, wanted: Mapping[str, Collection[str]]) -> pa.Table:
    """Return the rows of a table's file of which any column has one of its wanted values.

    Parameters
    ----------
    file
        Open; it is read a piece at a time, so that memory holds little but what is returned.
    schema
        Of what to return.
    wanted
        Values by column.
    """
    values = {name: pa.array(list(some), pa.string()) for name, some in wanted.items()}
    pieces = [schema.empty_table()]
    for batch in file.iter_batches(_ROWS_A_PIECE, columns=schema.names):
        # A file that a merge wrote has texts of a type that cannot be filtered.
        piece = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        pieces.append(
            piece.filter(functools.reduce(pc.or_, [pc.is_in(piece[n], some) for n, some in values.items()]))
        )
    return pa.concat_tables(pieces)


def log_entry(location: Location, name: str, version: int) -> dict[str, Any]:
    """Return what the commit of a table's version says of itself.

    Raises
    ------
    UnknownNameError
        If its log entry is gone.
    """
    # From the log itself: `DeltaTable.history` numbers the commits wrongly on a table opened in the past.
    try:
        lines = location.read(f"{name}/{LOG}/{version:020}.json").splitlines()
    except FileNotFoundError as error:
        raise UnknownNameError(f"{location}: the log of {name} has no entry {version} any more.") from error
    for line in lines:
        entry = json.loads(line)
        if "commitInfo" in entry:
            about: dict[str, Any] = entry["commitInfo"]
            return about
    return {"timestamp": 0}


def pandas_frame(table: pa.Table) -> pd.DataFrame:
    """Return a frame whose whole numbers stay whole where some are missing."""
    # A table without chunks has columns that pandas cannot join.
    whole = table if table.num_rows else table.schema.empty_table()
    frame: pd.DataFrame = whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame


def shortened(error: Exception) -> str:
    """Return an error's text on one line; delta-rs may print all of a log's structure."""
    text = " ".join(str(error).split())
    return text if len(text) <= SHOWN_OF_AN_ERROR else f"{text[:SHOWN_OF_AN_ERROR]}..."


@contextmanager
def committing(location: Location) -> Iterator[None]:
    """Turn a refused commit into one line; delta-rs wraps the system's errors in its own."""
    try:
        yield
    except (DeltaError, OSError) as error:
        text = str(error)
        for number, words in REFUSALS.items():
            if f"os error {number}" in text or os.strerror(number) in text:
                raise StoreWriteError(f"cannot commit to {location}: {words}.") from error
        raise StoreWriteError(f"cannot commit to {location}: {' '.join(text.split())}") from error
