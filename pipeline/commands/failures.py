"""``mirstore failures``: the files that could not be used, and why."""

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    SnapshotOption,
    console,
    print_json,
    print_table,
)


def failures(
    catalog: CatalogOption = DEFAULT_CATALOG, snapshot: SnapshotOption = None, as_json: JsonOption = False
) -> None:
    """One row a file: where it failed and the reason. `extract --retry-failed` tries them again."""
    from pipeline.store.reading import FeatureStore

    table = FeatureStore(catalog, snapshot=snapshot).failures.reset_index()
    if as_json:
        print_json(table.to_dict(orient="records"))
    elif not len(table):
        console().print("No failures.")
    else:
        print_table(
            ["track", "stage", "reason"],
            [[row.track_id, row.stage, row.reason] for row in table.itertuples(index=False)],
        )
