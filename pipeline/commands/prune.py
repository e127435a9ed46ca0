"""``mirstore prune``: remove the tracks that have gone from their collections."""

from typing import Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    console,
    counted,
    print_json,
)


def prune(
    catalog: CatalogOption = DEFAULT_CATALOG,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", metavar="NAME", help="Only of this collection, even if that is all it has."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the tracks that the last `extract` no longer found. Older snapshots still have them.

    A collection that would lose all its tracks must be named. Their bytes are freed by `compact`, then `gc`.
    """
    from pipeline.store.removal import prune as prune_tracks

    names = prune_tracks(
        catalog,
        collection=collection,
        dry_run=dry_run,
        on_refusal=lambda reason: typer.echo(f"mirstore: {reason}", err=True),
    )
    if as_json:
        print_json(names)
        return
    out = console()
    for name in names:
        out.print(name, markup=False)
    out.print(f"{counted(len(names), 'track')} {'would be ' if dry_run else ''}removed.")
    if not names:
        out.print("`mirstore extract` is what finds out which tracks have gone.")
