"""``mirstore prune``: remove the tracks that have gone from their collections."""

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
    tracks_and_files,
)


def prune(
    catalog: CatalogOption = DEFAULT_CATALOG,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", metavar="NAME", help="Only of this collection, even if that is most it has."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the tracks that the last `extract` no longer found. Older snapshots still have them.

    A collection that would lose more than half of its tracks must be named, with --dry-run too; of one that the
    catalog does not have, all tracks are removed. Their bytes are freed by `compact`, then `gc`.
    """
    from pipeline.store.removal import prune as prune_tracks

    removed = prune_tracks(catalog, collection=collection, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(removed)})
        return
    out = console()
    for name in (*removed.tracks, *removed.failed_files):
        out.print(name, markup=False)
    for name, n in removed.unlisted.items():
        out.print(
            f"{counted(n, 'track')} of {name}, which the catalog does not have: "
            f"`mirstore prune --collection {name}` removes them.",
            markup=False,
        )
    told = tracks_and_files(len(removed.tracks), len(removed.failed_files))
    out.print(f"{told} {'would be ' if dry_run else ''}removed.")
    if not removed.tracks + removed.failed_files:
        out.print("`mirstore extract` is what finds out which tracks have gone.")
