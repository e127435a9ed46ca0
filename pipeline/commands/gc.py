"""``mirstore gc``: remove what killed runs left."""

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    console,
    print_json,
    print_table,
    readable_bytes,
    readable_time,
    short_part,
)


def gc(
    catalog: CatalogOption = DEFAULT_CATALOG,
    grace: Annotated[
        float, typer.Option("--grace", min=0, metavar="SECONDS", help="Keep what changed within this time.")
    ] = 3600.0,
    keep: Annotated[
        float,
        typer.Option("--keep", min=0, metavar="DAYS", help="Snapshots of this time stay readable."),
    ] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what killed runs left, and what only old snapshots name. Readers are not disturbed.

    Dropped versions, pruned tracks and compacted parts take room until no snapshot that is kept names them.
    """
    from pipeline.store.garbage import collect_garbage

    found = collect_garbage(catalog, grace_s=grace, keep_s=keep * 86_400.0, dry_run=dry_run)
    if as_json:
        print_json({"unneeded": [asdict(one) for one in found], "dry_run": dry_run})
        return
    would = "would be " if dry_run else ""
    if found:
        print_table(
            ["part or array", "size", "age", ""],
            [
                [
                    short_part(one.name),
                    readable_bytes(one.bytes),
                    readable_time(one.age_s),
                    f"{would}removed" if one.due else "kept",
                ]
                for one in found
            ],
            right=["size", "age"],
        )
    if not all(one.due for one in found):
        console().print(f"Kept is what changed within {readable_time(grace)}; `--grace 0` removes it too.")
    due = [one for one in found if one.due]
    freed = readable_bytes(sum(one.bytes for one in due))
    console().print(f"{len(due):,} {would}removed, {freed} freed." if due else "Nothing to remove.")
    if keep:
        console().print(
            f"What snapshots of the last {keep:g} days name is kept; `--keep 0` keeps only the newest."
        )
