"""``mirstore drop``: drop one version of a feature."""

from typing import Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    console,
    print_json,
    readable_bytes,
)


def drop(
    version: Annotated[
        str, typer.Argument(metavar="FEATURE@VERSION", help="As `mirstore features` lists it.")
    ],
    catalog: CatalogOption = DEFAULT_CATALOG,
    force: Annotated[
        bool, typer.Option("--force", help="Even if the catalog asks for it or models use it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be dropped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Drop one version of a feature. Older snapshots still have it until `gc` frees its bytes."""
    from pipeline.catalog import load_catalog
    from pipeline.store import removal

    loaded = load_catalog(catalog)
    wanted = [feature.fingerprint for feature in loaded.resolved_features().values()]
    name, fingerprint, size = removal.drop(catalog, version, wanted=wanted, force=force, dry_run=dry_run)
    if as_json:
        about = {"version": f"{name}@{fingerprint}", "feature": name, "fingerprint": fingerprint}
        print_json({**about, "bytes": size, "dry_run": dry_run})
    else:
        would = "would be " if dry_run else ""
        console().print(
            f"{name}@{fingerprint} {would}dropped; its {readable_bytes(size)} are free once `mirstore gc` keeps "
            "no snapshot that names them."
        )
