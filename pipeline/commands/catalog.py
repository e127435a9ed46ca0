"""``mirstore catalog``: the catalog itself."""

from typing import Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    print_json,
    print_table,
)

app = typer.Typer(help="Check the catalog, or write its JSON Schema for an editor.")


@app.command("schema")
def schema(
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - prints it.")] = "-",
) -> None:
    """Write a JSON Schema of catalog.yaml, by which editors complete and check it."""
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
    """Check the catalog and print its features with their versions."""
    from pipeline.catalog import load_catalog
    from pipeline.store.location import location_of

    loaded = load_catalog(catalog)
    location_of(loaded.store)
    features = loaded.resolved_features().values()
    if as_json:
        print_json([{"feature": f.name, "version": f.fingerprint, **f.parameters()} for f in features])
        return
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
