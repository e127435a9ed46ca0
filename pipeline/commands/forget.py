"""``mirstore forget``: delete tracks for good."""

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
)


def forget(
    tracks: Annotated[list[str], typer.Argument(metavar="TRACK...", help="Tracks, as `collection/path`.")],
    catalog: CatalogOption = DEFAULT_CATALOG,
    allow: Annotated[
        bool, typer.Option("--allow", help="Let the next extraction take forgotten tracks again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete tracks for good: audio and features, in every snapshot. There is no way back.

    Their files are left alone by later extractions until `forget --allow`. Their names and labels stay in the
    tables of older snapshots until `gc` removes those.
    """
    from pipeline.catalog import load_catalog
    from pipeline.store import removal

    store = load_catalog(catalog).store
    if allow:
        removal.allow(store, tracks)
        print_json(tracks) if as_json else console().print(f"{counted(len(tracks), 'track')} allowed again.")
        return
    done = removal.forget(store, tracks)
    if as_json:
        print_json(asdict(done))
    else:
        console().print(
            f"{counted(len(done.track_ids), 'track')} forgotten: "
            f"{counted(done.chunks, 'chunk')} erased from {counted(done.parts, 'part')}."
        )
