"""``mirstore show``: one track on one page."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.output import DEFAULT_CATALOG, CatalogOption, SnapshotOption, console


def show(
    track: Annotated[str, typer.Argument(metavar="TRACK", help="Track, as `collection/path`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG, PDF or SVG.")] = Path(
        "page.png"
    ),
    catalog: CatalogOption = DEFAULT_CATALOG,
    snapshot: SnapshotOption = None,
) -> None:
    """Draw a track's waveform, log-mel, MFCC and embedding over time."""
    from pipeline.drawing import save_track_page
    from pipeline.store.reading import FeatureStore

    save_track_page(FeatureStore(catalog, snapshot=snapshot), track, output)
    console().print(f"{output}")
