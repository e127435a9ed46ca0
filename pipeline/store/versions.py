"""Versions of features: coverage, size, what computed them, and which models use them."""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.errors import StoreError
from pipeline.store.location import Location
from pipeline.store.reading import FeatureStore
from pipeline.store.summary import features_table

MODELS = "models"
CARD = "card.json"


@dataclass(frozen=True, slots=True)
class FeatureVersions:
    """Every version of every feature.

    Parameters
    ----------
    table
        The columns of `features_table` and: `parameters` (dict), `of_tracks` (how many tracks there are),
        `in_catalog` (None where the store was opened without a catalog), `computed_with` (list of dict: the
        `libraries` with their versions, and how many `parts` they computed), `models` (list of ``name/version``).
    remarks
        What could not be read.
    """

    table: pd.DataFrame
    remarks: tuple[str, ...]


def feature_versions(store: FeatureStore) -> FeatureVersions:
    """Return every version of every feature of a store.

    Parameters
    ----------
    store
        An open store; opened by its catalog, the table says which versions are the catalog's.
    """
    table = features_table(store)
    by_version = store.arrays.groupby("fingerprint", sort=False)
    parameters = by_version["parameters"].first().map(json.loads)
    computed_with = by_version.apply(_computed_with, include_groups=False)
    models, remarks = models_by_feature(store.location)
    current = store.catalog_versions
    fingerprints = table["fingerprint"]
    added = {
        "parameters": [parameters[fingerprint] for fingerprint in fingerprints],
        "of_tracks": len(store.placed_rows(["track_id"])),
        "in_catalog": fingerprints.isin(list(current.values())).astype(object) if current else None,
        "computed_with": [computed_with[fingerprint] for fingerprint in fingerprints],
        "models": [models.get(fingerprint, []) for fingerprint in fingerprints],
    }
    for name, cells in added.items():
        table[name] = cells
    return FeatureVersions(table, tuple(remarks))


def _computed_with(arrays: pd.DataFrame) -> list[dict[str, Any]]:
    counts = arrays.groupby("computed_with", sort=False)["part"].nunique()
    return [{"libraries": json.loads(libraries), "parts": int(n)} for libraries, n in counts.items()]


def models_by_feature(location: Location) -> tuple[dict[str, list[str]], list[str]]:
    """Return the models by the fingerprint of a feature they use, and what could not be read."""
    found: dict[str, list[str]] = defaultdict(list)
    remarks = []
    for name in _names(location, MODELS):
        for version in _names(location, f"{MODELS}/{name}"):
            card = f"{MODELS}/{name}/{version}/{CARD}"
            try:
                features = json.loads(location.read(card))["features"]
                fingerprints = {feature.rpartition("@")[2] for feature in features}
            except (OSError, ValueError, LookupError, TypeError, AttributeError, StoreError) as error:
                remarks.append(
                    f"{card} cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
                )
                continue
            for fingerprint in fingerprints:
                found[fingerprint].append(f"{name}/{version}")
    return found, remarks


def _names(location: Location, prefix: str) -> list[str]:
    try:
        return [name for name in location.names(prefix) if not name.startswith(".")]
    except NotADirectoryError:
        return []
