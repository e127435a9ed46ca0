"""``mirstore snapshots`` and ``mirstore diff``: the store's past."""

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
)

TRACKS_LISTED = 40


def snapshots(
    n: Annotated[
        int | None, typer.Option("--number", "-n", min=1, metavar="N", help="Only the newest N.")
    ] = None,
    catalog: CatalogOption = DEFAULT_CATALOG,
    as_json: JsonOption = False,
) -> None:
    """Every snapshot, newest first: when, by whom, what changed.

    `--snapshot N` of the reading commands reads the store as it was then.
    """
    from itertools import islice

    from pipeline.store.lineage import commits_table
    from pipeline.store.reading import FeatureStore

    table = commits_table(list(islice(FeatureStore(catalog).index.commits(), n)))
    if as_json:
        print_json(table.to_dict(orient="records"))
        return
    print_table(
        ["snapshot", "committed", "command", "by", "changes"],
        [
            [
                str(row.snapshot),
                f"{row.committed:%Y-%m-%dT%H:%M:%SZ}",
                row.command or "",
                row.by or "",
                row.changes,
            ]
            for row in table.itertuples(index=False)
        ],
        right=["snapshot"],
    )


def diff(
    old: Annotated[int, typer.Argument(min=0, metavar="OLD", help="Number of a snapshot.")],
    new: Annotated[
        int | None, typer.Argument(min=0, metavar="NEW", help="Another. [default: the newest]")
    ] = None,
    catalog: CatalogOption = DEFAULT_CATALOG,
    as_json: JsonOption = False,
) -> None:
    """What changed from one snapshot to another."""
    import pandas as pd

    from pipeline.store.differences import differences
    from pipeline.store.reading import FeatureStore

    store = FeatureStore(catalog, snapshot=new)
    found = differences(store.at(old), store)
    if as_json:
        names = ("tracks", "failed_files", "features")
        tables = {name: getattr(found, name).to_dict(orient="records") for name in names}
        print_json({"old": found.old, "new": found.new, **tables})
        return
    files = pd.concat(
        [found.tracks.assign(of="track"), found.failed_files.assign(of="failed file")], ignore_index=True
    )
    if not len(files) and not len(found.features):
        console().print(f"Nothing changed from {found.old} to {found.new}.")
        return
    if len(found.features):
        print_table(
            ["feature", "version", "", "tracks before", "after"],
            [
                [row.feature, row.fingerprint, row.change, f"{row.before:,}", f"{row.after:,}"]
                for row in found.features.itertuples(index=False)
            ],
            right=["tracks before", "after"],
        )
        console().print()
    if len(files):
        sums = files.groupby(["of", "change", "what"], sort=False).size()
        print_table(
            ["", "change", "what"],
            [[counted(n, of), change, what] for (of, change, what), n in sums.items()],
        )
        console().print()
        print_table(
            ["", "name", "change", "what"],
            [
                [
                    row.of,
                    f"{row.old_track_id} -> {row.track_id}" if row.old_track_id else row.track_id,
                    row.change,
                    row.what,
                ]
                for row in files.head(TRACKS_LISTED).itertuples(index=False)
            ],
        )
    if len(files) > TRACKS_LISTED:
        more = counted(len(files) - TRACKS_LISTED, "more file")
        console().print(f"\nand {more}; `--json` lists all.")
