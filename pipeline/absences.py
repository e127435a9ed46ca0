"""Why the catalog no longer leads to a track that the store has."""

import os
from collections.abc import Callable, Collection

import pandas as pd

from pipeline.catalog import Catalog, FolderCollection, ManifestCollection
from pipeline.globs import PathFilter
from pipeline.urls import is_url


def absence_reasons(gone: pd.DataFrame, catalog: Catalog, emptied: Collection[str] = ()) -> list[str]:
    """Return for each track that a scan did not find what is true of it; files are looked for, not opened.

    Parameters
    ----------
    gone
        `track_id`, `collection`, `uri` and `has_features` of files of the catalog's collections.
    catalog
        The catalog that was scanned.
    emptied
        Collections in which nothing was found any more.
    """
    reason_in = {name: _reason_in(catalog.collections[name]) for name in gone["collection"].unique()}
    whole = {name: f", like all of {name}" for name in emptied}
    columns = (gone[name] for name in ("track_id", "collection", "uri", "has_features"))
    return [
        reason_in[name](track_id.removeprefix(f"{name}/"), uri)
        + whole.get(name, "")
        + ("" if has_features else " (it had failed)")
        for track_id, name, uri, has_features in zip(*columns, strict=True)
    ]


def _reason_in(collection: FolderCollection | ManifestCollection) -> Callable[[str, str], str]:
    """Reason by path below the collection's folder, and uri."""
    if isinstance(collection, ManifestCollection):
        # A row whose file is not there is a failure, so what was not found has no row.
        return lambda _path, _uri: "no longer in the manifest"
    wanted = PathFilter(collection.include, collection.exclude)
    place = f"{str(collection.path).rstrip('/')}/"

    def reason(path: str, uri: str) -> str:
        if not wanted.matches(path):
            return "include or exclude leaves it out now"
        # A bucket's listing was complete: what is below it and was not listed is not there.
        still_there = not uri.startswith(place) if is_url(uri) else os.path.exists(uri)
        return "no longer in the collection" if still_there else "the file is gone"

    return reason
