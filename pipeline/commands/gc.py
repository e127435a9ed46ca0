"""``mirstore gc``: remove what killed runs left."""

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    console,
    counted,
    print_json,
    print_table,
    readable_bytes,
    readable_time,
)


def gc(
    catalog: CatalogOption = DEFAULT_CATALOG,
    grace: Annotated[
        float, typer.Option("--grace", min=0, metavar="SECONDS", help="Keep what changed within this time.")
    ] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove parts and arrays that no commit names. Readers are not disturbed."""
    from pipeline.catalog import load_catalog
    from pipeline.store.upkeep import collect_garbage

    orphans = collect_garbage(load_catalog(catalog).store, grace_s=grace, dry_run=dry_run)
    if as_json:
        print_json([asdict(orphan) for orphan in orphans])
        return
    if orphans:
        print_table(
            ["orphan", "size", "age", ""],
            [
                [
                    orphan.name,
                    readable_bytes(orphan.bytes),
                    readable_time(orphan.age_s),
                    "removed" if orphan.removed else "kept",
                ]
                for orphan in orphans
            ],
            right=["size", "age"],
        )
    if any(not orphan.removed for orphan in orphans) and not dry_run:
        console().print(f"Kept is what changed within {readable_time(grace)}; `--grace 0` removes it too.")
    freed = sum(orphan.bytes for orphan in orphans if orphan.removed)
    n_removed = sum(orphan.removed for orphan in orphans)
    console().print(f"{counted(n_removed, 'orphan')} removed, {readable_bytes(freed)} freed.")
