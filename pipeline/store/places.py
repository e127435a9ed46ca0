"""Places: where a store is, by path, by URL, or by the catalog that names it."""

import os
from typing import TYPE_CHECKING

from pipeline.store.location import Location, location_of

if TYPE_CHECKING:
    from pipeline.catalog import Catalog

Place = str | os.PathLike[str] | Location


def catalog_at(place: Place) -> "Catalog | None":
    """Return the catalog that a place is, or None where it is a store.

    Raises
    ------
    CatalogError
        If it is a catalog that is wrong.
    """
    if isinstance(place, Location) or not os.fspath(place).endswith((".yaml", ".yml")):
        return None
    from pipeline.catalog import load_catalog

    return load_catalog(os.fspath(place))


def store_at(place: Place) -> Location:
    """Return the store at a place: itself, or that of a catalog.

    Raises
    ------
    CatalogError
        If it is a catalog that is wrong, or a URL of another kind.
    """
    catalog = catalog_at(place)
    return location_of(place if catalog is None else catalog.store)
