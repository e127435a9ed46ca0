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
from pipeline.commands.help import Verb

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


app.command("extract", cls=Verb)(extract.extract)
app.command("status", cls=Verb)(status.status)
app.command("features", cls=Verb)(features.features)
app.command("failures", cls=Verb)(failures.failures)
app.command("show", cls=Verb)(show.show)
app.command("query", cls=Verb)(query.query)
app.command("export", cls=Verb)(export.export)
app.command("snapshots", cls=Verb)(snapshots.snapshots)
app.command("diff", cls=Verb)(snapshots.diff)
app.command("verify", cls=Verb)(verify.verify)
app.command("prune", cls=Verb)(prune.prune)
app.command("forget", cls=Verb)(forget.forget)
app.command("drop", cls=Verb)(drop.drop)
app.command("compact", cls=Verb)(compact.compact)
app.command("gc", cls=Verb)(gc.gc)
app.add_typer(labels.app, name="labels")
app.add_typer(catalog.app, name="catalog")
