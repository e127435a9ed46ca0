"""From audio files to the feature store: catalog, decoding, planning, Dask jobs, storage, command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.catalog import load_catalog
    from pipeline.exports import export
    from pipeline.extraction import extract, plan_extraction
    from pipeline.labels import add_labels, labels_table, remove_labels
    from pipeline.search import nearest_tracks
    from pipeline.store.compaction import compact
    from pipeline.store.differences import differences
    from pipeline.store.garbage import collect_garbage
    from pipeline.store.reading import FeatureStore
    from pipeline.store.removal import allow, drop, forget, prune
    from pipeline.store.summary import features_table
    from pipeline.store.verification import verify
    from pipeline.store.versions import feature_versions

_HOMES = {
    "FeatureStore": "pipeline.store.reading",
    "add_labels": "pipeline.labels",
    "allow": "pipeline.store.removal",
    "collect_garbage": "pipeline.store.garbage",
    "compact": "pipeline.store.compaction",
    "differences": "pipeline.store.differences",
    "drop": "pipeline.store.removal",
    "export": "pipeline.exports",
    "extract": "pipeline.extraction",
    "feature_versions": "pipeline.store.versions",
    "features_table": "pipeline.store.summary",
    "forget": "pipeline.store.removal",
    "labels_table": "pipeline.labels",
    "load_catalog": "pipeline.catalog",
    "nearest_tracks": "pipeline.search",
    "plan_extraction": "pipeline.extraction",
    "prune": "pipeline.store.removal",
    "remove_labels": "pipeline.labels",
    "verify": "pipeline.store.verification",
}

__all__ = [
    "FeatureStore",
    "add_labels",
    "allow",
    "collect_garbage",
    "compact",
    "differences",
    "drop",
    "export",
    "extract",
    "feature_versions",
    "features_table",
    "forget",
    "labels_table",
    "load_catalog",
    "nearest_tracks",
    "plan_extraction",
    "prune",
    "remove_labels",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: a worker decodes without pandas, a status report without Dask.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
