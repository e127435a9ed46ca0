"""``mirstore forget``: delete tracks for good."""

import sys
from dataclasses import asdict
from pathlib import Path
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
    short_part,
)

if TYPE_CHECKING:
    from pipeline.store.removal import Forgotten

TRACKS_LISTED = 40


def forget(
    tracks: Annotated[
        list[str] | None, typer.Argument(metavar="TRACK", help="Tracks, as `collection/path`.")
    ] = None,
    catalog: CatalogOption = DEFAULT_CATALOG,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Those of a file too, a line each, # begins a comment; - is standard input.",
        ),
    ] = None,
    allow: Annotated[
        bool, typer.Option("--allow", help="Let the next extraction take forgotten tracks again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be erased.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete tracks for good: audio and features, in every snapshot. There is no way back.

    Their files, and copies of them under any name, are left alone by later extractions until `forget --allow`.
    Their names and labels stay in the tables of older snapshots until `gc` removes those.
    """
    from pipeline.store import removal

    if allow and dry_run:
        raise typer.BadParameter("--allow erases nothing: leave --dry-run out.")
    names = list(dict.fromkeys([*(tracks or ()), *(_lines(listed) if listed else ())]))
    if not names:
        raise typer.BadParameter("name at least one track, here or with --from.", param_hint="'TRACK...'")
    store = catalog
    if allow:
        removal.allow(store, names)
        print_json({"allowed": names}) if as_json else console().print(
            f"{counted(len(names), 'track')} allowed again."
        )
        return
    done = removal.forget(store, names, dry_run=dry_run)
    if as_json:
        print_json({**asdict(done), "dry_run": dry_run})
    else:
        _print(done, dry_run=dry_run)


def _lines(file: Path) -> list[str]:
    """Return the lines of a file that are neither empty nor a comment: no track begins with a #."""
    from pipeline.errors import CatalogError

    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CatalogError(f"{file}: not valid UTF-8. Save the file as UTF-8.") from None
    except OSError as error:
        raise CatalogError(f"{file}: cannot be read: {error.strerror or error}.") from error
    # Not `splitlines`: a name may hold what it takes for the end of a line.
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _print(done: "Forgotten", *, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    if len(done.tracks) <= TRACKS_LISTED:
        print_table(
            ["track", "chunks", "of parts", "other names", "copies that stay"],
            [
                [
                    track.track_id,
                    f"{track.chunks:,}",
                    ", ".join(map(short_part, track.parts)),
                    ", ".join(track.other_names),
                    ", ".join(track.copies),
                ]
                for track in done.tracks
            ],
            right=["chunks"],
        )
    else:
        console().print("`--json` lists every track.")
    console().print(
        f"{counted(len(done.tracks), 'track')} {would}forgotten: "
        f"{counted(done.chunks, 'chunk')} {would}erased from {counted(done.parts, 'part')}."
    )
    copies = {name for track in done.tracks for name in track.copies}
    if copies:
        console().print(
            f"{counted(len(copies), 'track')} of the same content under another name: not touched, "
            "but not decoded again either."
        )
