"""``mirstore verify``: read everything again."""

from typing import Annotated

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
    short_part,
)
from pipeline.commands.progress import StepDisplay


def verify(
    catalog: CatalogOption = DEFAULT_CATALOG,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", metavar="N", help="Of this snapshot. [default: the newest]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every row, check every checksum, compare index and parts. Exit code 1 if something is wrong."""
    from pipeline.errors import CURE
    from pipeline.store.verification import verify as verify_store

    with StepDisplay("bytes", quiet=as_json, as_bytes=True) as display:
        report = verify_store(catalog, snapshot=snapshot, on_progress=display.update)
    if as_json:
        print_json(
            {
                "problems": report.problems.to_dict(orient="records"),
                "tracks": report.tracks,
                "parts": report.parts,
                "arrays": report.arrays,
                "rows": report.rows,
                "bytes": report.bytes,
            }
        )
    else:
        if not report.is_sound:
            print_table(
                ["part", "array", "tracks", "problem", "such as"],
                [
                    [
                        short_part(row.part or ""),
                        row.array or "",
                        f"{row.tracks:,}",
                        row.problem,
                        ", ".join(row.track_ids[:3]),
                    ]
                    for row in report.problems.itertuples(index=False)
                ],
                right=["tracks"],
            )
        console().print(
            f"{counted(report.tracks, 'track')}, {counted(report.parts, 'part')}, "
            f"{counted(report.arrays, 'array')}, {counted(report.rows, 'row')}, {readable_bytes(report.bytes)}: "
            f"{'nothing is wrong' if report.is_sound else counted(len(report.problems), 'problem')}."
        )
        if not report.is_sound:
            console().print(f"{CURE} `--json` names all tracks and whole parts.")
    if not report.is_sound:
        raise typer.Exit(1)
