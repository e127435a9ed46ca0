"""Manifests: tables whose column `uri` names audio files and whose other columns are labels."""

import json
import math
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.errors import CatalogError, did_you_mean
from pipeline.remote_files import Unreachable, pieces
from pipeline.store.location import native_buffer
from pipeline.urls import RemoteUrl, remote_url

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_LINES = 10  # problems told at a time
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


@dataclass(frozen=True, slots=True)
class Row:
    """One file a manifest names.

    Parameters
    ----------
    path
        Relative to the root; absolute if it lies outside, and host and path if it is remote then.
    labels
        JSON object of the row's other columns, or None.
    url
        Where it is on another machine; None for a file of this one.
    """

    path: str
    labels: str | None
    url: RemoteUrl | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's table.

    Parameters
    ----------
    file
        Where it was read, for messages.
    table
        Column `uri` and the labels.
    header_rows
        Rows before the first: 1 for CSV, so that row numbers are those of a spreadsheet.
    """

    file: str
    table: pa.Table
    header_rows: int

    def located(self, root: str | RemoteUrl) -> Iterator[Row]:
        """Return the rows with their paths from `root`; all are checked before the first is given.

        Raises
        ------
        CatalogError
            If a uri is empty, there twice, leads out of `root`, or is a URL that cannot be used; a line for
            each, naming its row.
        """
        located: list[tuple[str, RemoteUrl | None]] = []
        problems: list[str] = []
        first: dict[str, int] = {}
        paths: _Paths | _RemotePaths = _RemotePaths(root) if isinstance(root, RemoteUrl) else _Paths(root)
        for number, uri in enumerate(self.table["uri"].to_pylist(), start=1 + self.header_rows):
            try:
                path, url = _located(uri, paths)
            except ValueError as error:
                problems.append(f"{self.file}: row {number}: uri: {error}")
                continue
            same = first.setdefault(path.lstrip("/"), number)
            if same != number:
                told = f"{url.shown!r} (apart from what follows a '?')" if url and url.query else f"{uri!r}"
                problems.append(f"{self.file}: row {number}: uri: {told} is there already, in row {same}.")
            located.append((path, url))
        if problems:
            more = [f"and {len(problems) - _LINES} more."] if len(problems) > _LINES else []
            raise CatalogError("\n".join(problems[:_LINES] + more))
        labels = _labels(self.table)
        return (Row(path, label, url) for (path, url), label in zip(located, labels, strict=True))


def _located(uri: str | None, paths: "_Paths | _RemotePaths") -> tuple[str, RemoteUrl | None]:
    """Path of a uri for the track's name, and where it is if that is on another machine."""
    if uri is None or not uri.strip():
        raise ValueError("expected a path, got nothing.")
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1].lower() != "file":
        url = remote_url(uri)
        if not url.path:
            raise ValueError(f"{url.shown!r} names no file.")
        return paths.name(url), url
    if scheme:
        host, slash, rest = uri[scheme.end() :].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"expected file:///path, got {uri!r}.")
        uri = "/" + unquote(rest)
    if "\0" in uri:
        raise ValueError("a path cannot hold a NUL character.")
    return paths.located(uri)


class _RemotePaths:
    """Paths below a URL; no file of this machine is below it."""

    def __init__(self, root: RemoteUrl) -> None:
        self.root = root

    def name(self, url: RemoteUrl) -> str:
        """Path of a URL from the root, or host and path outside."""
        prefix = f"{self.root.path}/".lstrip("/")
        below = (self.root.scheme, self.root.host) == (url.scheme, url.host) and url.path.startswith(prefix)
        return replace(url, path=url.path[len(prefix) :]).name if below else f"{url.host}/{url.name}"

    def located(self, uri: str) -> tuple[str, RemoteUrl]:
        """Path of a relative uri, and its URL."""
        path = posixpath.normpath(uri)
        if uri.startswith("/"):
            raise ValueError(f"{uri!r} is a file of this machine. Set 'root' to a folder, or give its URL.")
        if path in (".", "..") or path.startswith("../"):
            raise ValueError(f"{uri!r} leads out of {self.root}. Set 'root' above it or give its URL.")
        url = remote_url(str(self.root.below(path)))
        return self.name(url), url


class _Paths:
    """Paths below a root, checked against leading out of it."""

    def __init__(self, root: str) -> None:
        self.root = posixpath.normpath(root)
        self.real_root = os.path.realpath(root)
        self._real_folders: dict[str, bool] = {"": True}

    def name(self, url: RemoteUrl) -> str:
        """Host and path of a URL."""
        return f"{url.host}/{url.name}"

    def located(self, uri: str) -> tuple[str, None]:
        """Path from the root, absolute if outside."""
        if uri.startswith("/"):
            path = "/" + posixpath.normpath(uri).lstrip("/")
            prefix = self.root.rstrip("/") + "/"
            return (path[len(prefix) :] if path.startswith(prefix) else path), None
        path = posixpath.normpath(uri)
        if path in (".", "..") or path.startswith("../"):
            raise ValueError(
                f"{uri!r} leads out of {self.root}. Set 'root' above it or give an absolute path."
            )
        if not self._stays(path):
            raise ValueError(
                f"{uri!r} leads out of {self.root} through a symlink. Give the absolute path it leads to."
            )
        return path, None

    def _stays(self, path: str) -> bool:
        folder = posixpath.dirname(path)
        inside = self._real_folders.get(folder)
        if inside is None:
            inside = self._real_folders[folder] = self._is_inside(folder)
        return inside and (not os.path.islink(f"{self.root}/{path}") or self._is_inside(path))

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(f"{self.root}/{path}")
        return real == self.real_root or real.startswith(self.real_root.rstrip("/") + "/")


def read_manifest(place: Path | RemoteUrl) -> Manifest:
    """Read a manifest.

    Parameters
    ----------
    place
        CSV (UTF-8, comma, with a header) or Parquet.

    Raises
    ------
    CatalogError
        If it does not exist, cannot be read, or has no column `uri`.
    """
    table = read_table(place, text=["uri"])
    file, names = _name(place), table.column_names
    if "uri" not in names:
        hint = did_you_mean("uri", names) or _uri_case(names) or f" It has: {', '.join(names)}."
        raise CatalogError(f"{file}: there is no column 'uri'.{hint}")
    return Manifest(file, with_text(table, "uri", file), header_rows(place))


def _name(place: Path | RemoteUrl) -> str:
    return place.shown if isinstance(place, RemoteUrl) else str(place)


def header_rows(place: Path | RemoteUrl) -> int:
    """Return the rows before the first: 1 for CSV, so that row numbers are those of a spreadsheet."""
    path = place.path if isinstance(place, RemoteUrl) else place.name
    return int(path.lower().endswith(".csv"))


def read_table(place: Path | RemoteUrl, *, text: Sequence[str]) -> pa.Table:
    """Read a table whose columns all have names of their own.

    Parameters
    ----------
    place
        CSV (UTF-8, comma, with a header) or Parquet.
    text
        Columns of a CSV that are text whatever they look like; types of the others are found out.

    Raises
    ------
    CatalogError
        If it does not exist, or cannot be read.
    """
    file, is_csv = _name(place), bool(header_rows(place))
    try:
        content = b"".join(pieces(place)) if isinstance(place, RemoteUrl) else place.read_bytes()
        table = _read_csv(content, text) if is_csv else parquet.ParquetFile(native_buffer(content)).read()
    except Unreachable as error:
        raise CatalogError(f"{file}: cannot be read: {error}.") from error
    except FileNotFoundError:
        raise CatalogError(f"{file}: there is no such file.") from None
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CatalogError(f"{file}: cannot be read: {reason.rstrip('.')}.") from error
    check_names(table.column_names, str(file))
    for name, column in zip(table.column_names, table.columns, strict=True):
        if is_csv and pa.types.is_binary(column.type):
            raise CatalogError(f"{file}: the column {name!r} is not valid UTF-8. Save the file as UTF-8.")
    return table


def check_names(names: Sequence[str], source: str) -> None:
    """Raise `CatalogError` where a column has no name, or two have the same."""
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise CatalogError(f"{source}: column {number} has no name. Name it, or write without an index.")
        if names.count(name) > 1:
            raise CatalogError(f"{source}: the column {name!r} is there {names.count(name)} times.")


def with_text(table: pa.Table, name: str, source: str) -> pa.Table:
    """Return a table whose column `name` is plain text, raising `CatalogError` where it is not."""
    column = table[name]
    if pa.types.is_dictionary(column.type):  # categories
        column = column.cast(column.type.value_type)
    if not any(is_text(column.type) for is_text in _TEXT):
        raise CatalogError(f"{source}: the column {name!r} must hold text, got {column.type}.")
    return table.set_column(table.column_names.index(name), name, column)


def _uri_case(names: list[str]) -> str:
    close = [name for name in names if name.strip().lower() in ("uri", "url", "path", "file", "filename")]
    return f" Rename the column {close[0]!r}." if close else ""


def _read_csv(content: bytes, text: Sequence[str]) -> pa.Table:
    # One block and one thread: types are inferred from all rows, and errors name theirs.
    return csv.read_csv(
        native_buffer(content),
        read_options=csv.ReadOptions(use_threads=False, block_size=min(len(content) + 1, 2**31 - 1)),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
    )


def _labels(table: pa.Table) -> Iterator[str | None]:
    """JSON object of every row's labels; what is missing or empty is left out."""
    labels = table.drop_columns(["uri"])
    if not labels.num_columns:
        yield from (None for _ in range(table.num_rows))
        return
    encoder = json.JSONEncoder(ensure_ascii=False, default=_json)
    for batch in labels.to_batches(max_chunksize=65_536):
        for row in batch.to_pylist():
            given = {name: value for name, value in row.items() if not _is_missing(value)}
            yield encoder.encode(given) if given else None


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def _json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)
