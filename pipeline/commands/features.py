"""``mirstore features``: versions of features, what computed them, who uses them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    SnapshotOption,
    console,
    counted,
    print_json,
    print_table,
    readable_bytes,
)

# What the numbers of a kind come from; --json has all that was recorded.
LIBRARIES = {
    "audio": ("av", "soxr"),
    "log_mel": ("numpy", "scipy"),
    "mfcc": ("numpy", "scipy"),
    "cnn": ("torch", "precision", "device"),
}


def features(
    catalog: CatalogOption = DEFAULT_CATALOG, snapshot: SnapshotOption = None, as_json: JsonOption = False
) -> None:
    """Every version of every feature: coverage, bytes, parameters.

    Also the libraries that computed it and the models that use it. A * marks the catalog's version. A library's
    upgrade recomputes nothing: parts of several versions of one are listed with their numbers.
    """
    from pipeline.store.reading import FeatureStore
    from pipeline.store.versions import feature_versions

    found = feature_versions(FeatureStore(catalog, snapshot=snapshot))
    if as_json:
        rows = found.table.to_dict(orient="records")
        versions = [{"version": f"{row['feature']}@{row['fingerprint']}", **row} for row in rows]
        print_json({"features": versions, "remarks": found.remarks})
        return
    out = console()
    if not len(found.table):
        out.print("No features.")
    else:
        print_table(
            [
                "version",
                "",
                "kind",
                "tracks",
                "hours",
                "size",
                "models",
            ],
            [
                [
                    f"{row.feature}@{row.fingerprint}",
                    "*" if row.in_catalog else "",
                    row.kind,
                    f"{row.tracks:,} of {row.of_tracks:,}",
                    f"{row.hours:.2f}",
                    readable_bytes(row.bytes),
                    ", ".join(row.models),
                ]
                for row in found.table.itertuples(index=False)
            ],
            right=["tracks", "hours", "size"],
        )
        for row in found.table.itertuples(index=False):
            libraries = computed_with(row.kind, row.computed_with)
            out.print(f"\n{row.feature}@{row.fingerprint}: {short(row.parameters)}", markup=False)
            if libraries:
                out.print(f"    computed with {libraries}", markup=False)
    for remark in found.remarks:
        out.print(remark)


def computed_with(kind: str, recorded: Sequence[Mapping[str, Any]]) -> str:
    """Return the libraries that a kind's numbers come from, with the number of parts where there are several.

    Examples
    --------
    >>> one = {"libraries": {"numpy": "2.4.6", "scipy": "1.17.1", "av": "18"}, "parts": 3}
    >>> computed_with("mfcc", [one])
    'numpy 2.4.6, scipy 1.17.1'
    >>> computed_with("mfcc", [one, {"libraries": {"numpy": "2.5.0", "scipy": "1.17.1"}, "parts": 1}])
    'numpy 2.4.6, scipy 1.17.1 (3 parts); numpy 2.5.0, scipy 1.17.1 (1 part)'
    """
    parts: Counter[str] = Counter()
    for one in recorded:
        libraries = one["libraries"]
        shown = [f"{name} {libraries[name]}" for name in LIBRARIES.get(kind, ()) if name in libraries]
        parts[", ".join(shown)] += one["parts"]
    if len(parts) == 1:
        return next(iter(parts))
    return "; ".join(f"{words} ({counted(n, 'part')})" for words, n in parts.items())


def short(parameters: Mapping[str, Any]) -> str:
    """Return parameters on one line; long values, such as hashes, are cut.

    Examples
    --------
    >>> short({"kind": "mfcc", "n_mfcc": 12, "norm": None, "weights": "sha256:0123456789abcdef0123"})
    'n_mfcc 12, weights sha256:0123...'
    """
    given = ((name, str(value)) for name, value in parameters.items() if name != "kind" and value is not None)
    return ", ".join(f"{name} {text if len(text) <= 16 else text[:11] + '...'}" for name, text in given)
