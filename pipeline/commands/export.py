"""``mirstore export``: features as files that need no mirstore to be read."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

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
from pipeline.commands.progress import StepDisplay


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty.")],
    feature: Annotated[
        list[str],
        typer.Option("--feature", metavar="NAME", help="This feature, or feature@version (repeatable)."),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="npz|parquet|zarr",
            help="A file a track; a table of a row a chunk; or one group.",
        ),
    ] = "npz",
    where: Annotated[
        str | None,
        typer.Option(
            "--where", metavar="QUERY", help="Only tracks for which this holds: `duration_s > 180`."
        ),
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", metavar="NAME", help="Only this collection.")
    ] = None,
    catalog: CatalogOption = DEFAULT_CATALOG,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write features and labels as NumPy files, Parquet or Zarr.

    Values are float32. `pandas.read_parquet` and `xarray.open_zarr` take the whole folder. _manifest.json,
    written last, says what everything is; a track that cannot be read is named there, the rest is exported, and
    the exit code is 1.
    """
    from pipeline.exports import export as run_export
    from pipeline.store.reading import FeatureStore

    store = FeatureStore(catalog, snapshot=snapshot)
    if where or collection:
        store = store.select(where, collection=collection)
    with StepDisplay("tracks", quiet=as_json) as display:
        report = run_export(
            store,
            folder,
            features=feature,
            format=format,
            on_progress=lambda progress: display.update(progress.songs_done, progress.songs_total),
        )
    if as_json:
        print_json(asdict(report))
    else:
        console().print(
            f"{counted(report.tracks, 'track')}, {counted(report.chunks, 'chunk')} in "
            f"{counted(report.files, 'file')}, {readable_bytes(report.bytes)}: {report.folder}"
        )
        if report.lacking:
            console().print(f"{counted(report.lacking, 'track')} left out: not all features are there.")
        if report.failed:
            print_table(["failed", "reason"], [list(failure) for failure in report.failed.items()])
    if report.failed:
        raise typer.Exit(1)
