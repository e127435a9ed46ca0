"""From audio files to the feature store: catalog, decoding, planning, Dask jobs, storage, command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.catalog import load_catalog
    from pipeline.extraction import extract, plan_extraction
    from pipeline.search import nearest_tracks
    from pipeline.store.reading import FeatureStore

__all__ = ["FeatureStore", "extract", "load_catalog", "nearest_tracks", "plan_extraction"]

_HOMES = {
    "FeatureStore": "pipeline.store.reading",
    "extract": "pipeline.extraction",
    "load_catalog": "pipeline.catalog",
    "nearest_tracks": "pipeline.search",
    "plan_extraction": "pipeline.extraction",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: a worker decodes without pandas, a status report without Dask.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
