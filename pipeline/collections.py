"""What files the collections name: a look at folders, buckets and manifests that opens no audio file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog, FolderCollection, ManifestCollection
from pipeline.errors import CatalogError, UnknownNameError, did_you_mean
from pipeline.folders import FolderWalk, link_reason
from pipeline.found import TRACKS, Found, reason
from pipeline.globs import PathFilter
from pipeline.manifests import Row, read_manifest
from pipeline.remote_files import Unreachable, listing, status, statuses
from pipeline.urls import RemoteUrl

_PROBLEMS = ["track_id", "collection", "uri", "reason"]


@dataclass(frozen=True, slots=True)
class Scan:
    """What the collections name at one moment.

    Parameters
    ----------
    tracks
        A row a usable file, sorted by `track_id`: `track_id`, `collection`, `uri` (absolute path, or URL),
        `size` (bytes), `mtime_ns` (0 where a server tells none), `labels` (a JSON object, or missing).
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
        If a collection's folder, bucket or manifest does not exist or cannot be read, or a manifest is wrong.
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
    table = pa.Table.from_batches(batches, schema=TRACKS)
    del batches
    table = table.take(pc.sort_indices(table["track_id"]))
    return Scan(
        tracks=table.to_pandas(split_blocks=True, self_destruct=True),
        problems=pd.DataFrame(sorted(problems), columns=_PROBLEMS, dtype="str"),
        collections=names,
    )


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a collection names, as far as this machine can tell without asking another.

    Parameters
    ----------
    place
        Folder, manifest or URL.
    files
        Files with content; None where the place is on another machine.
    unusable
        Reasons by `track_id` of links, files and folders that are named but cannot be used.
    remote
        Files of other machines that a manifest of this one names.
    """

    place: str
    files: int | None
    unusable: Mapping[str, str] = field(default_factory=dict)
    remote: int = 0


def extent(catalog: Catalog, name: str) -> Extent:
    """Count what one collection names; files are looked at but not opened, other machines not asked.

    Raises
    ------
    CatalogError
        If its folder or manifest does not exist or cannot be read, or the manifest is wrong.
    """
    collection = catalog.collections[name]
    place = collection.path if isinstance(collection, FolderCollection) else collection.manifest
    if isinstance(place, RemoteUrl):
        if isinstance(collection, ManifestCollection) and isinstance(collection.root, Path):
            _checked_folder(catalog, f"collections.{name}.root", collection.root)
        return Extent(place.shown, None)
    remote: Sequence[Row] = ()
    if isinstance(collection, FolderCollection):
        found = _scan_folder(catalog, name, collection)
    else:
        found, remote = _listed(catalog, name, collection)
        found.flush()
    unusable = {track_id: why for track_id, _, _, why in sorted(found.problems)}
    return Extent(str(place), sum(map(len, found.batches)), unusable, len(remote))


def _checked_folder(catalog: Catalog, key: str, folder: Path) -> str:
    """The folder's path, if it is one."""
    action = "Mount it, correct the path, or take the collection out of the catalog."
    try:
        with os.scandir(folder):
            return str(folder)
    except FileNotFoundError:
        problem = f"there is no folder {folder}"
    except NotADirectoryError:
        problem = f"expected a folder, got the file {folder}"
        action = "Name the folder that it is in, or list single files in a manifest."
    except OSError as error:
        problem = f"the folder {folder} cannot be listed: {reason(error)}"
    raise catalog.error(key, f"{problem}. {action}")


def _scan_folder(catalog: Catalog, name: str, collection: FolderCollection) -> Found:
    key, place = f"collections.{name}.path", collection.path
    wanted = PathFilter(collection.include, collection.exclude)
    if isinstance(place, RemoteUrl):
        return _scan_bucket(catalog, name, place, wanted)
    found = Found(name, _checked_folder(catalog, key, place))
    FolderWalk(found, wanted).run()
    found.flush()
    return found


def _scan_bucket(catalog: Catalog, name: str, place: RemoteUrl, wanted: PathFilter) -> Found:
    found, listed = Found(name, str(place)), False
    empty: list[str] = []
    try:
        for path, its in listing(place):
            listed = True
            if not wanted.matches(path):
                continue
            if its.size:
                found.track(path, its.size, its.mtime_ns)
            else:
                empty.append(path)
        problem = "" if listed else f"there is nothing below {place}"
    except Unreachable as error:
        problem = f"{place} cannot be listed: {error}"
    if problem:
        action = "Correct the URL or the credentials, or take the collection out of the catalog."
        raise catalog.error(f"collections.{name}.path", f"{problem}. {action}")
    for path in empty:
        try:
            # Listed without its last slash, a marker of a folder looks like an empty object.
            if not status(place.below(path)).size:
                found.problem(path, str(place.below(path)), "empty file")
        except Unreachable:
            continue
    found.flush()
    return found


def _scan_manifest(catalog: Catalog, name: str, collection: ManifestCollection) -> Found:
    found, remote = _listed(catalog, name, collection)
    _look_at(found, remote)
    found.flush()
    return found


def _listed(catalog: Catalog, name: str, collection: ManifestCollection) -> tuple[Found, list[Row]]:
    """What a manifest names of this machine, and its rows of others."""
    key = f"collections.{name}"
    place = collection.root
    if place is None:
        manifest = collection.manifest
        place = manifest.folder if isinstance(manifest, RemoteUrl) else manifest.parent
    if isinstance(place, RemoteUrl):
        root = str(place)
    else:
        root = _checked_folder(catalog, f"{key}.root" if collection.root else f"{key}.manifest", place)
    try:
        rows = read_manifest(collection.manifest).located(root if isinstance(place, Path) else place)
    except CatalogError as error:
        raise catalog.error(f"{key}.manifest", str(error)) from error
    found = Found(name, root)
    remote: list[Row] = []
    for row in rows:
        if row.url is not None:
            remote.append(row)
            continue
        uri = os.path.join(root, row.path)
        try:
            its = os.stat(uri)
        except OSError as error:
            found.problem(row.path, uri, _missing_reason(uri, error))
            continue
        found.usable(row.path, uri, its, row.labels)
    return found, remote


def _look_at(found: Found, rows: Sequence[Row]) -> None:
    """Add rows of other machines."""
    urls = [row.url for row in rows if row.url is not None]
    for row, url, its in zip(rows, urls, statuses(urls), strict=True):
        if isinstance(its, Unreachable):
            found.problem(row.path, str(url), str(its))
        elif not its.size:
            found.problem(row.path, str(url), "empty file")
        else:
            found.track(row.path, its.size, its.mtime_ns, row.labels, str(url))


def _missing_reason(uri: str, error: OSError) -> str:
    if os.path.islink(uri):
        return link_reason(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "the manifest names it, but there is no such file"
    return reason(error)
