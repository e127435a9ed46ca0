"""``mirstore failures``: the files that could not be used, or only in part, and why."""

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
    """Files that could not be used, or only in part, and why.

    One row a file: the stage at which it failed, and the reason; `extract --retry-failed` tries these again.
    Those of the stage `truncated` are tracks that lack a part of their audio.
    """
    from pipeline.store.reading import FeatureStore
    from pipeline.store.track_table import truncated_tracks

    store = FeatureStore(catalog, snapshot=snapshot)
    failed, truncated = store.failures.reset_index(), truncated_tracks(store).reset_index()
    if as_json:
        print_json({"failed": failed.to_dict("records"), "truncated": truncated.to_dict("records")})
    elif not len(failed) + len(truncated):
        console().print("No failures.")
    else:
        print_table(
            ["track", "stage", "reason"],
            [[row.track_id, row.stage, row.reason] for row in failed.itertuples(index=False)]
            + [[row.track_id, "truncated", row.reason] for row in truncated.itertuples(index=False)],
        )
