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
                ", ".join(f"{count:,} {name}" for name, count in row.counts.items()),
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
    from pipeline.store.differences import differences
    from pipeline.store.reading import FeatureStore

    store = FeatureStore(catalog, snapshot=new)
    found = differences(store.at(old), store)
    if as_json:
        tables = {name: getattr(found, name).to_dict(orient="records") for name in ("tracks", "features")}
        print_json({"old": found.old, "new": found.new, **tables})
        return
    if not len(found.tracks) and not len(found.features):
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
    if len(found.tracks):
        sums = found.tracks.groupby(["change", "what"], sort=False).size()
        words = [f"{change} ({what})" if what else change for change, what in sums.index]
        print_table(
            ["tracks", ""], [[f"{n:,}", word] for n, word in zip(sums, words, strict=True)], right=["tracks"]
        )
        console().print()
        print_table(
            ["track", "change", "what"],
            [
                [
                    f"{row.old_track_id} -> {row.track_id}" if row.old_track_id else row.track_id,
                    row.change,
                    row.what,
                ]
                for row in found.tracks.head(TRACKS_LISTED).itertuples(index=False)
            ],
        )
    if len(found.tracks) > TRACKS_LISTED:
        more = counted(len(found.tracks) - TRACKS_LISTED, "more track")
        console().print(f"\nand {more}; `--json` lists all.")
