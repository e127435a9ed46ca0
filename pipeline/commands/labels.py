"""``mirstore labels``: labels added from tables."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.help import Verb
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

if TYPE_CHECKING:
    from pipeline.label_tables import Finding

app = typer.Typer(help="Add labels from a table, remove them, list them.")


@app.command("add", cls=Verb)
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV or Parquet; its first row names the columns.")
    ],
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
        print_json({**asdict(report), "dry_run": dry_run})
        return
    would = "would be " if dry_run else ""
    lines = [
        f"{counted(report.rows, 'row')}, by {report.by}: {counted(report.tracks, 'track')} named, "
        f"{report.changed:,} {would}changed",
        f"labels: {', '.join(f'{name} ({kind})' for name, kind in report.kinds.items()) or 'none'}",
        *(_told(finding) for finding in report.findings),
    ]
    if dry_run:
        lines.append("Nothing was written: --dry-run.")
    else:
        lines.append("Nothing to do." if report.snapshot is None else f"Snapshot {report.snapshot}.")
    for line in lines:
        console().print(line, markup=False)


def _told(finding: "Finding") -> str:
    """Return a finding on one line."""
    more = ", ..." if finding.count > len(finding.examples) > 0 else ""
    examples = f" ({', '.join(finding.examples)}{more})" if finding.examples else ""
    return f"{finding.what}: {finding.count:,}{examples}"


@app.command("remove", cls=Verb)
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Labels.")],
    catalog: CatalogOption = DEFAULT_CATALOG,
    as_json: JsonOption = False,
) -> None:
    """Remove added labels from all tracks.

    Those of manifests and files stay.
    """
    from pipeline.labels import remove_labels

    report = remove_labels(catalog, names)
    if as_json:
        print_json(asdict(report))
        return
    console().print(
        f"{', '.join(report.labels)} removed from {counted(report.tracks, 'track')}: snapshot {report.snapshot}."
    )


@app.command("list", cls=Verb)
def list_labels(
    catalog: CatalogOption = DEFAULT_CATALOG,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every label: its source, how many tracks have it."""
    from pipeline.labels import labels_table
    from pipeline.store.reading import FeatureStore

    table = labels_table(FeatureStore(catalog, snapshot=snapshot))
    if as_json:
        print_json({"labels": table.to_dict(orient="records")})
    elif not len(table):
        console().print("No labels.")
    else:
        renamed = (table["label"] != table["column"]).any()
        print_table(
            ["label", "source", "tracks", "values", "example", *(["column of tracks"] if renamed else [])],
            [
                [
                    row.label,
                    row.source,
                    f"{row.tracks:,}",
                    f"{row.distinct:,}",
                    row.example,
                    *([row.column] if renamed else []),
                ]
                for row in table.itertuples(index=False)
            ],
            right=["tracks", "values"],
        )
