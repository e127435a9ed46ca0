"""``mirstore compact``: rewrite parts that are mostly dead, merge small ones."""

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
    readable_bytes,
)
from pipeline.commands.progress import StepDisplay


def compact(
    catalog: CatalogOption = DEFAULT_CATALOG,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rewrite parts that are less than 70 % live; merge small ones.

    Readers are not disturbed, and older snapshots keep what they name: `gc` frees the bytes later.
    """
    from pipeline.store.compaction import compact as compact_store

    with StepDisplay("parts written", quiet=as_json) as display:
        report = compact_store(catalog, dry_run=dry_run, on_progress=display.update)
    if as_json:
        print_json({**asdict(report), "dry_run": dry_run})
    elif not report.rewritten + report.emptied:
        console().print("Nothing to compact." if not report.damage else "Nothing else to compact.")
    else:
        would = "would be " if dry_run else ""
        told = []
        if report.rewritten:
            told.append(f"{counted(report.rewritten, 'part')} {would}rewritten into {report.made:,}")
        if report.emptied:
            told.append(f"{counted(report.emptied, 'part')} without live rows {would}dropped")
        sums = f"{counted(report.rows, 'row')} copied, {counted(report.dead_rows, 'dead row')} left out."
        console().print(f"{', '.join(told)}: {sums}")
        if report.freed_bytes:
            freed, are = readable_bytes(report.freed_bytes), "would be" if dry_run else "are"
            console().print(f"{freed} {are} free once `mirstore gc` keeps no snapshot that names them.")
    for line in report.damage:
        typer.echo(f"mirstore: {line}", err=True)
    if report.damage:
        raise typer.Exit(1)
