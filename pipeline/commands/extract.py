"""``mirstore extract``: bring the store up to date with the catalog."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    console,
    counted,
    print_json,
    print_table,
    readable_bytes,
    readable_time,
    tracks_and_files,
)
from pipeline.commands.progress import ProgressDisplay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.planning import Plan
    from pipeline.reports import ExtractReport


def extract(
    catalog: CatalogOption = DEFAULT_CATALOG,
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", metavar="NAME", help="Only this collection (repeatable)."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="NAME", help="Only this feature and what it needs (repeatable)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Worker processes. [default: one a core]"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Use a running Dask scheduler, tcp://host:port."),
    ] = None,
    job_timeout: Annotated[
        float,
        typer.Option(
            "--job-timeout",
            min=0.1,
            metavar="SECONDS",
            help="End a worker whose job, about an hour of audio, takes longer.",
            show_default=True,
        ),
    ] = 1800.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed files again though they have not changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Decode new and changed songs; compute what features they lack.

    A broken song becomes a row of `mirstore failures` and stops nothing. Ctrl-C once finishes the
    jobs in flight, twice abandons them; running again goes on from there.
    """
    from pipeline.extraction import extract as run_extraction
    from pipeline.extraction import plan_extraction

    def planned(todo: "Plan") -> None:
        _warn_of(todo.emptied)
        display.planned(todo)

    if dry_run:
        todo = plan_extraction(
            catalog, collections=collection or (), features=feature or (), retry_failed=retry_failed
        )
        _warn_of(todo.emptied)
        if as_json:
            print_json(todo.to_records())
        else:
            _print_plan(todo)
        return
    with ProgressDisplay(quiet=as_json) as display:
        report = run_extraction(
            catalog,
            collections=collection or (),
            features=feature or (),
            workers=workers,
            scheduler=scheduler,
            job_timeout_s=job_timeout,
            retry_failed=retry_failed,
            on_plan=planned,
            on_progress=display.update,
            on_refused=display.refused,
        )
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)
    if report.interrupted:
        raise typer.Exit(130)


def _warn_of(emptied: "Mapping[str, int]") -> None:
    """Say which collections have nothing any more, also where nothing else is shown."""
    for name, n in emptied.items():
        typer.echo(
            f"mirstore: nothing was found any more in the collection {name}: {counted(n, 'track')} gone, features "
            "kept. If a disk is missing or the catalog or manifest is wrong, mend that and extract again; if it is "
            f"meant, `mirstore prune --collection {name}` removes them.",
            err=True,
        )


TRACKS_LISTED = 40


def _print_plan(todo: "Plan") -> None:
    """Print each track while they fit on a page, and always the sums."""
    records = todo.to_records()
    if records and len(records) <= TRACKS_LISTED:
        print_table(
            ["action", "track", "reason"],
            [[str(row["action"]), str(row["track_id"]), str(row["reason"])] for row in records],
        )
        console().print()
    summary = todo.summary()
    print_table(
        ["action", "reason", "files", "size"],
        [
            [row.action, row.reason, f"{row.files:,}", readable_bytes(row.bytes)]
            for row in summary.itertuples(index=False)
        ],
        right=["files", "size"],
    )
    if len(records) > TRACKS_LISTED:
        console().print("\n`--json` lists every file.")
    if todo.is_empty:
        console().print("Nothing to do.")


def _print_report(report: "ExtractReport") -> None:
    out = console()
    done = []
    if report.songs:
        speed = report.audio_s / report.steady_s if report.steady_s else 0.0
        done.append(
            f"{counted(report.songs, 'song')}, {report.audio_s / 3600:.2f} h of audio in "
            f"{readable_time(report.elapsed_s)} ({speed:,.0f} x real time, {report.startup_s:.1f} s start-up)"
        )
    elif report.failures > report.unopened:
        took = f"{readable_time(report.elapsed_s)} ({report.startup_s:.1f} s start-up)"
        done.append(f"no song could be decoded, in {took}")
    if report.computed:
        done.append(f"{counted(report.computed, 'song')} given missing features from the cache")
    for n, failed_files, words in (
        (report.moved, 0, "moved"),
        (report.back, report.back_failed, "back"),
        (report.updated, 0, "updated"),
        (report.gone, report.gone_failed, "marked gone"),
    ):
        if n or failed_files:
            done.append(f"{tracks_and_files(n, failed_files)} {words}")
    if report.failures:
        unopened = f", {report.unopened:,} of which cannot be opened" if report.unopened else ""
        done.append(f"{counted(report.failures, 'file')} failed{unopened}: see `mirstore failures`")
    if report.interrupted:
        done.append("stopped early: run again to go on")
    out.print("\n".join(done) if done else f"Nothing to do ({report.elapsed_s:.1f} s).")
