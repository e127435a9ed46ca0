"""What files the collections name: a walk of folders and manifests that opens no audio file."""

import errno
import os
import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog, FolderCollection, ManifestCollection
from pipeline.errors import CatalogError, UnknownNameError, did_you_mean
from pipeline.globs import PathFilter
from pipeline.manifests import read_manifest

_BATCH = 65_536  # paths held as Python strings at a time
_TRACKS = pa.schema(
    [
        ("track_id", pa.large_string()),
        ("collection", pa.large_string()),
        ("uri", pa.large_string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("labels", pa.large_string()),
    ]
)
_PROBLEMS = ["track_id", "collection", "uri", "reason"]
_TYPES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True, slots=True)
class Scan:
    """What the collections name at one moment.

    Parameters
    ----------
    tracks
        A row a usable file, sorted by `track_id`: `track_id`, `collection`, `uri` (absolute path),
        `size` (bytes), `mtime_ns`, `labels` (a JSON object, or missing).
    problems
        A row for all that is named but cannot be used: `track_id`, `collection`, `uri`, `reason`. A
        `track_id` that ends in `/` is a folder that could not be read: nothing is known of the
        tracks below it, so they do not count as gone.
    collections
        Names of the collections that were scanned; nothing is known of any other.
    """

    tracks: pd.DataFrame
    problems: pd.DataFrame
    collections: tuple[str, ...]


def scan(catalog: Catalog, *, only: Sequence[str] | None = None) -> Scan:
    """List the tracks of a catalog's collections, without opening an audio file.

    Parameters
    ----------
    catalog
        The catalog.
    only
        Names of the collections to scan; all by default.

    Returns
    -------
    Scan
        Tracks and problems, each sorted by `track_id`.

    Notes
    -----
    Links to folders are followed, but every folder is read once: where several links lead to one
    folder, or a link to a folder of the same collection, its tracks are listed under one name, the
    real one before a link's.

    Raises
    ------
    UnknownNameError
        If `only` names a collection that the catalog does not have.
    CatalogError
        If a collection's folder or manifest does not exist or cannot be read, or a manifest is wrong.
    """
    names = tuple(catalog.collections) if only is None else tuple(dict.fromkeys(only))
    for name in names:
        if name not in catalog.collections:
            raise UnknownNameError(
                f"The catalog has no collection {name!r}.{did_you_mean(name, catalog.collections)}"
            )
    batches: list[pa.RecordBatch] = []
    problems: list[tuple[str, str, str, str]] = []
    for name in names:
        match catalog.collections[name]:
            case FolderCollection() as folder:
                found = _scan_folder(catalog, name, folder)
            case ManifestCollection() as manifest:
                found = _scan_manifest(catalog, name, manifest)
        batches += found.batches
        problems += found.problems
    table = pa.Table.from_batches(batches, schema=_TRACKS)
    del batches
    table = table.take(pc.sort_indices(table["track_id"]))
    return Scan(
        tracks=table.to_pandas(split_blocks=True, self_destruct=True),
        problems=pd.DataFrame(sorted(problems), columns=_PROBLEMS, dtype="str"),
        collections=names,
    )


@dataclass(slots=True)
class _Found:
    """Tracks and problems of one collection, gathered into Arrow batches to stay small."""

    collection: str
    root: str
    batches: list[pa.RecordBatch] = field(default_factory=list)
    problems: list[tuple[str, str, str, str]] = field(default_factory=list)
    _paths: list[str] = field(default_factory=list)
    _labels: list[str | None] = field(default_factory=list)
    _numbers: "array[int]" = field(default_factory=lambda: array("q"))

    def track(self, path: str, size: int, mtime_ns: int, labels: str | None = None) -> None:
        """Add a track by its path below the root, or by an absolute path."""
        self._paths.append(path)
        self._labels.append(labels)
        self._numbers.extend((size, mtime_ns))
        if len(self._paths) == _BATCH:
            self.flush()

    def problem(self, path: str, uri: str, reason: str) -> None:
        """Add a problem; bytes that are no UTF-8 are written out in hexadecimal."""
        track_id = f"{self.collection}/{path.lstrip('/')}"
        self.problems.append((_printable(track_id), self.collection, _printable(uri), reason))

    def usable(self, path: str, uri: str, status: os.stat_result, labels: str | None = None) -> None:
        """Add a track if its status is that of a file with content, else a problem."""
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFREG:
            self.problem(path, uri, f"not a regular file but {_TYPES.get(kind, 'something else')}")
        elif status.st_size == 0:
            self.problem(path, uri, "empty file")
        elif not _is_utf8(path):
            self.problem(path, uri, "the name is not valid UTF-8; rename the file")
        else:
            self.track(path, status.st_size, status.st_mtime_ns, labels)

    def flush(self) -> None:
        """Turn what was gathered into a batch."""
        if not self._paths:
            return
        root = "" if self.root == "/" else self.root
        paths, text = self._paths, pa.large_string()
        uris = [path if path.startswith("/") else f"{root}/{path}" for path in paths]
        sizes, mtimes_ns = np.array(self._numbers, dtype=np.int64).reshape(-1, 2).T
        self.batches.append(
            pa.record_batch(
                [
                    pa.array([f"{self.collection}/{path.lstrip('/')}" for path in paths], text),
                    pa.repeat(pa.scalar(self.collection, text), len(paths)),
                    pa.array(uris, text),
                    pa.array(sizes, pa.int64()),
                    pa.array(mtimes_ns, pa.int64()),
                    pa.array(self._labels, text),
                ],
                schema=_TRACKS,
            )
        )
        self._paths.clear()
        self._labels.clear()
        del self._numbers[:]


def _is_utf8(text: str) -> bool:
    """Whether a path is text, not bytes that the file system let through (surrogates)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return path if _is_utf8(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _checked_folder(catalog: Catalog, key: str, folder: Path) -> str:
    """The folder's path, if it is one."""
    try:
        with os.scandir(folder):
            return str(folder)
    except FileNotFoundError:
        problem = f"there is no folder {folder}"
    except NotADirectoryError:
        problem = f"expected a folder, got the file {folder}"
    except OSError as error:
        problem = f"the folder {folder} cannot be listed: {_reason(error)}"
    raise catalog.error(
        key, f"{problem}. Mount it, correct the path, or take the collection out of the catalog."
    )


def _scan_folder(catalog: Catalog, name: str, collection: FolderCollection) -> _Found:
    root = _checked_folder(catalog, f"collections.{name}.path", collection.path)
    found = _Found(name, root)
    _Walk(found, PathFilter(collection.include, collection.exclude)).run()
    found.flush()
    return found


class _Walk:
    """One walk of a tree: every folder once, real folders before links to them."""

    def __init__(self, found: _Found, wanted: PathFilter) -> None:
        self.found = found
        self.matches = wanted.matches
        self.descends = wanted.descends
        self.visited: dict[tuple[int, int], str] = {}
        self.folders: list[str] = [""]
        self.links: list[str] = []

    def run(self) -> None:
        while self.folders or self.links:
            # A link waits until every real folder is read, so that a track keeps its real name
            # whatever links come and go.
            linked = not self.folders
            if linked:
                self.links.sort(reverse=True)
            self.folder((self.links if linked else self.folders).pop(), linked=linked)

    def folder(self, path: str, *, linked: bool) -> None:
        found, matches = self.found, self.matches
        uri = os.path.join(found.root, path) if path else found.root
        below: list[str] = []
        try:
            status = os.stat(uri)
            if self._seen(path, uri, status, linked=linked):
                return
            if not _is_utf8(path):
                found.problem(f"{path}/", uri, "the folder's name is not valid UTF-8; rename it")
                return
            prefix = f"{path}/" if path else ""
            with os.scandir(uri) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_symlink():
                        self._link(name, entry)
                    elif entry.is_dir(follow_symlinks=False):
                        if self.descends(name):
                            below.append(name)
                    elif matches(name):
                        self._file(name, entry)
        except OSError as error:
            found.problem(f"{path}/" if path else "", uri, f"folder cannot be listed: {_reason(error)}")
        below.sort(reverse=True)
        self.folders += below

    def _seen(self, path: str, uri: str, status: os.stat_result, *, linked: bool) -> bool:
        """Whether a folder was read before; a link to a folder above itself is told as a problem."""
        first = self.visited.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        target = os.path.join(os.path.realpath(uri), "")
        above = os.path.join(os.path.realpath(os.path.dirname(uri)), "")
        if linked and above.startswith(target):
            self.found.problem(path, uri, "symlink loop: leads back to a folder above it")
        return True

    def _file(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted since the folder was listed
            return
        except OSError as error:
            self.found.problem(path, entry.path, _reason(error))
            return
        self.found.usable(path, entry.path, status)

    def _link(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat()
        except OSError as error:
            # What a broken link led to is unknown: without an ending it may have been a folder.
            if self.matches(path) or (self.descends(path) and not os.path.splitext(path)[1]):
                self.found.problem(path, entry.path, _link_reason(error))
            return
        if stat.S_ISDIR(status.st_mode):
            if self.descends(path):
                self.links.append(path)
        elif self.matches(path):
            self.found.usable(path, entry.path, status)


def _link_reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "symlink loop"
    return "broken symlink" if isinstance(error, FileNotFoundError) else f"symlink: {_reason(error)}"


def _scan_manifest(catalog: Catalog, name: str, collection: ManifestCollection) -> _Found:
    key = f"collections.{name}"
    root = _checked_folder(
        catalog,
        f"{key}.root" if collection.root else f"{key}.manifest",
        collection.root or collection.manifest.parent,
    )
    try:
        rows = read_manifest(collection.manifest).located(root)
    except CatalogError as error:
        raise catalog.error(f"{key}.manifest", str(error)) from error
    found = _Found(name, root)
    for row in rows:
        if row.remote:
            found.problem(row.path, row.path, "remote audio is not supported yet")
            continue
        uri = os.path.join(root, row.path)
        try:
            status = os.stat(uri)
        except OSError as error:
            found.problem(row.path, uri, _missing_reason(uri, error))
            continue
        found.usable(row.path, uri, status, row.labels)
    found.flush()
    return found


def _missing_reason(uri: str, error: OSError) -> str:
    if os.path.islink(uri):
        return _link_reason(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "the manifest names it, but there is no such file"
    return _reason(error)
