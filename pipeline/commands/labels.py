"""``mirstore labels``: labels added from tables."""

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
)

app = typer.Typer(help="Add labels from a table, remove them, list them.")


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet; its first row names the columns.")],
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="Which column names the tracks: track_id, path or content_hash. [default: the one it has]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    catalog: CatalogOption = DEFAULT_CATALOG,
    as_json: JsonOption = False,
) -> None:
    """Add a table's columns to the tracks' labels. An empty cell leaves what was there.

    A path is absolute or below the collection; a content_hash is the file's SHA-256. Added labels come before
    those of a manifest, and these before a file's own tags.
    """
    from pipeline.labels import add_labels

    report = add_labels(catalog, file, by=by, dry_run=dry_run)
    if as_json:
        print_json(asdict(report))
        return
    print_table(
        ["", "number", "such as"],
        [
            ["rows", f"{report.rows:,}", f"by {report.by}"],
            ["labels", f"{len(report.labels):,}", ", ".join(report.labels)],
            ["tracks named", f"{report.tracks:,}", ""],
            ["tracks changed", f"{report.changed:,}", ""],
            *([found.what, f"{found.count:,}", ", ".join(found.examples)] for found in report.findings),
        ],
        right=["number"],
    )
    if dry_run:
        console().print("Nothing was written: --dry-run.")
    elif report.snapshot is None:
        console().print("Nothing to do.")
    else:
        console().print(f"Commit {report.snapshot}.")


@app.command("remove")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Labels.")],
    catalog: CatalogOption = DEFAULT_CATALOG,
    as_json: JsonOption = False,
) -> None:
    """Remove added labels from all tracks; those of manifests and files stay."""
    from pipeline.labels import remove_labels

    report = remove_labels(catalog, names)
    if as_json:
        print_json(asdict(report))
        return
    console().print(
        f"{', '.join(report.labels)} removed from {counted(report.tracks, 'track')}: commit {report.snapshot}."
    )


@app.command("list")
def list_labels(
    catalog: CatalogOption = DEFAULT_CATALOG,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every label with where it is from, how many tracks have it, and an example."""
    from pipeline.labels import labels_table
    from pipeline.store.reading import FeatureStore

    table = labels_table(FeatureStore(catalog, snapshot=snapshot))
    if as_json:
        print_json(table.to_dict(orient="records"))
    elif not len(table):
        console().print("No labels.")
    else:
        print_table(
            ["label", "source", "tracks", "values", "example"],
            [
                [row.label, row.source, f"{row.tracks:,}", f"{row.distinct:,}", row.example]
                for row in table.itertuples(index=False)
            ],
            right=["tracks", "values"],
        )
