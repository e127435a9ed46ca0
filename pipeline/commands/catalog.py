"""``mirstore catalog``: the catalog itself."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    console,
    print_json,
    print_table,
    short_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.collections import Extent

UNUSABLE_LISTED = 5  # of each collection

app = typer.Typer(help="Check the catalog, or write its JSON Schema for an editor.")


@app.command("schema")
def schema(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write; - prints it.")
    ] = "-",
) -> None:
    """Write a JSON Schema of catalog.yaml.

    Editors complete and check the file by it.
    """
    import json
    from pathlib import Path

    from pipeline.catalog import json_schema
    from pipeline.errors import StoreWriteError

    text = json.dumps(json_schema(), indent=2)
    if output == "-":
        typer.echo(text)
    else:
        try:
            Path(output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise StoreWriteError(f"cannot write {output}: {error.strerror}.") from error
        typer.echo(output)


@app.command("check")
def check(catalog: CatalogOption = DEFAULT_CATALOG, as_json: JsonOption = False) -> None:
    """Check the catalog, count its files, name its features.

    Folders, manifests and weights are looked for on this machine; what is on another is not.
    """
    from pipeline.catalog import load_catalog
    from pipeline.catalog_check import check as checked

    found = checked(load_catalog(catalog))
    features = found.features.values()
    if as_json:
        print_json(
            {
                "collections": [
                    {
                        **{"collection": name, "place": its.place, "files": its.files},
                        **{"unusable": len(its.unusable), "remote": its.remote},
                        "problems": [
                            {"track_id": track_id, "reason": reason}
                            for track_id, reason in its.unusable.items()
                        ],
                    }
                    for name, its in found.collections.items()
                ],
                "features": [
                    {
                        "version": f"{f.name}@{f.fingerprint}",
                        **{"feature": f.name, "fingerprint": f.fingerprint},
                        **f.parameters(),
                    }
                    for f in features
                ],
            }
        )
        return
    print_table(
        ["collection", "place", "files", ""],
        [
            [name, short_path(its.place), "" if its.files is None else f"{its.files:,}", _remarks(its)]
            for name, its in found.collections.items()
        ],
        right=["files"],
    )
    _print_unusable(found.collections)
    console().print()
    print_table(
        ["feature", "version", "kind", "from", "a chunk"],
        [
            [
                f.name,
                f.fingerprint,
                f.kind,
                f.upstream or "",
                f"{' x '.join(map(str, f.row_shape))} {f.dtype}",
            ]
            for f in features
        ],
    )


def _remarks(its: "Extent") -> str:
    if its.files is None:
        return "not checked"
    remarks = [] if its.files or its.remote else ["no file to extract"]
    if its.unusable:
        remarks.append(f"{len(its.unusable):,} unusable")
    if its.remote:
        remarks.append(f"{its.remote:,} on other machines, not checked")
    return ", ".join(remarks)


def _print_unusable(collections: "Mapping[str, Extent]") -> None:
    """Name the first files of each collection that cannot be used."""
    rows, more = [], 0
    for its in collections.values():
        rows += [list(pair) for pair in islice(its.unusable.items(), UNUSABLE_LISTED)]
        more += max(0, len(its.unusable) - UNUSABLE_LISTED)
    if not rows:
        return
    console().print()
    print_table(["unusable", "reason"], rows)
    if more:
        console().print(f"and {more:,} more; `--json` lists all.")
