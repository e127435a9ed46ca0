"""Whether what a catalog names is there: all that can be found out before anything is extracted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.catalog import Catalog
from pipeline.collections import Extent, extent
from pipeline.definitions import Feature
from pipeline.errors import CatalogError, StoreError
from pipeline.store.index import Index
from pipeline.store.location import is_folder, location_of


@dataclass(frozen=True, slots=True)
class Check:
    """What a catalog without fault asks for.

    Parameters
    ----------
    collections
        How much each collection names.
    features
        Every feature in its place, upstream first.
    """

    collections: dict[str, Extent]
    features: dict[str, Feature]


def check(catalog: Catalog) -> Check:
    """Look for the folders, manifests, weights and store of a catalog; other machines are not asked.

    Raises
    ------
    CatalogError
        If something does not exist, cannot be read, does not fit together or not the store that there is; with
        a line for each.
    """
    problems: list[str] = []

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except CatalogError as error:
            # A feature's problem is met again with all that are computed from it.
            problems.extend(line for line in str(error).splitlines() if line not in problems)

    collections: dict[str, Extent] = {}
    features: dict[str, Feature] = {}
    with noted():
        _check_store(catalog)
    for name in catalog.collections:
        with noted():
            collections[name] = extent(catalog, name)
    for name in catalog.features:
        with noted():
            features |= _alone(catalog, name).resolved_features()
    if problems:
        raise CatalogError("\n".join(problems))
    return Check(collections, features)


def _check_store(catalog: Catalog) -> None:
    """Raise if the store that is there cannot be extracted to."""
    location = location_of(catalog.store)
    if not is_folder(location):
        return
    try:
        Index.open_or_none(location, catalog.resolved_grid)
    except StoreError as error:
        raise catalog.error("store", str(error)) from error


def _alone(catalog: Catalog, name: str) -> Catalog:
    """The catalog with one feature, what that is computed from, and the audio, which decides the grid."""
    kept, at = {n for n, definition in catalog.features.items() if definition.kind == "audio"}, name
    while at in catalog.features and at not in kept:
        kept.add(at)
        at = getattr(catalog.features[at], "from_", "")
    some = {n: definition for n, definition in catalog.features.items() if n in kept}
    return catalog.model_copy(update={"features": some})
