"""All verbs put together."""

from importlib.metadata import version

import typer

from pipeline.commands import (
    catalog,
    compact,
    drop,
    export,
    extract,
    failures,
    features,
    forget,
    gc,
    labels,
    prune,
    query,
    show,
    snapshots,
    status,
    verify,
)

app = typer.Typer(
    name="mirstore",
    help="Decode song collections once, keep every feature in chunked Zarr, work from the cache.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # boxes break paragraphs where the source does
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mirstore {version('mirstore')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


app.command("extract")(extract.extract)
app.command("status")(status.status)
app.command("features")(features.features)
app.command("failures")(failures.failures)
app.command("show")(show.show)
app.command("query")(query.query)
app.command("export")(export.export)
app.command("snapshots")(snapshots.snapshots)
app.command("diff")(snapshots.diff)
app.command("verify")(verify.verify)
app.command("prune")(prune.prune)
app.command("forget")(forget.forget)
app.command("drop")(drop.drop)
app.command("compact")(compact.compact)
app.command("gc")(gc.gc)
app.add_typer(labels.app, name="labels")
app.add_typer(catalog.app, name="catalog")
