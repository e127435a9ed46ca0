"""Whether what a catalog names is there: all that can be found out before anything is extracted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.catalog import Catalog
from pipeline.collections import Extent, extent
from pipeline.definitions import Feature
from pipeline.errors import CatalogError
from pipeline.store.location import location_of


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
    """Look for the folders, manifests and weights of a catalog; other machines are not asked.

    Raises
    ------
    CatalogError
        If something does not exist, cannot be read or does not fit together; with a line for each.
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
        location_of(catalog.store)
    for name in catalog.collections:
        with noted():
            collections[name] = extent(catalog, name)
    for name in catalog.features:
        with noted():
            features |= _alone(catalog, name).resolved_features()
    if problems:
        raise CatalogError("\n".join(problems))
    return Check(collections, features)


def _alone(catalog: Catalog, name: str) -> Catalog:
    """The catalog with one feature, what that is computed from, and the audio, which decides the grid."""
    kept, at = {n for n, definition in catalog.features.items() if definition.kind == "audio"}, name
    while at in catalog.features and at not in kept:
        kept.add(at)
        at = getattr(catalog.features[at], "from_", "")
    some = {n: definition for n, definition in catalog.features.items() if n in kept}
    return catalog.model_copy(update={"features": some})
