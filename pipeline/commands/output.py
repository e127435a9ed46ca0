"""What the verbs print: tables, JSON, and amounts people can read."""

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

CatalogOption = Annotated[
    Path, typer.Option("--catalog", "-c", metavar="PATH", help="The catalog.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
SnapshotOption = Annotated[
    int | None,
    typer.Option("--snapshot", metavar="N", help="Read the store as of this snapshot. [default: the newest]"),
]
DEFAULT_CATALOG = Path("catalog.yaml")


def console() -> Console:
    """Return a console for results: as wide as the terminal, never wrapping where there is none."""
    width = None if sys.stdout.isatty() else 200
    return Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty())


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    import pandas as pd  # here, so that --help and `catalog` do without

    if value is pd.NA:
        return None
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.item() if hasattr(value, "item") else str(value)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print aligned columns; headings in `right` hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for heading in headings:
        number = heading in right
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    out = console()
    with out.capture() as captured:
        out.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def readable_bytes(n: float) -> str:
    """Return bytes in decimal units.

    Examples
    --------
    >>> readable_bytes(999), readable_bytes(1_500_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def short_path(place: str) -> str:
    """Return a place as one would type it here: a path is relative where it lies below the working folder."""
    here, path = Path.cwd(), Path(place)
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) and path != here else place


def short_part(name: str) -> str:
    """Return the name of a part, or of something in it, with the first 8 of the part's 32 digits.

    Examples
    --------
    >>> short_part("0123456789abcdef0123456789abcdef/logmel@ee3879d3c73d")
    '01234567/logmel@ee3879d3c73d'
    """
    return re.sub(r"^([0-9a-f]{8})[0-9a-f]{24}(?=/|$)", r"\1", name)


def readable_time(seconds: float) -> str:
    """Return a time span.

    Examples
    --------
    >>> readable_time(4.2), readable_time(75), readable_time(7322)
    ('4 s', '1 min 15 s', '2 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def tracks_and_files(tracks: int, failed_files: int) -> str:
    """Return numbers of tracks, which have features, and of failed files, which have none.

    Examples
    --------
    >>> tracks_and_files(21, 3), tracks_and_files(0, 1), tracks_and_files(0, 0)
    ('21 tracks and 3 failed files', '1 failed file', '0 tracks')
    """
    told = [counted(tracks, "track")] if tracks or not failed_files else []
    return " and ".join([*told, counted(failed_files, "failed file")] if failed_files else told)


def counted(n: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> counted(1, "song"), counted(2, "song")
    ('1 song', '2 songs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
