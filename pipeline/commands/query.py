"""``mirstore query``: tracks that sound like one track."""

from typing import Annotated

import typer

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    SnapshotOption,
    print_json,
    print_table,
)


def query(
    track: Annotated[
        str, typer.Argument(metavar="TRACK", help="Track to compare with, as `collection/path`.")
    ],
    feature: Annotated[str, typer.Option("--feature", metavar="NAME", help="An embedding.")] = "embedding",
    n: Annotated[int, typer.Option("--number", "-n", min=1, metavar="N", help="How many tracks.")] = 3,
    catalog: CatalogOption = DEFAULT_CATALOG,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Nearest tracks by cosine similarity of the mean embedding."""
    from pipeline.search import nearest_tracks
    from pipeline.store.reading import FeatureStore

    nearest = nearest_tracks(FeatureStore(catalog, snapshot=snapshot), track, feature=feature, n=n)
    if as_json:
        print_json({"track_id": track, "feature": feature, "nearest": nearest.to_dict(orient="records")})
    else:
        print_table(
            ["similarity", "track"],
            [[f"{row.similarity:+.3f}", row.track_id] for row in nearest.itertuples(index=False)],
            right=["similarity"],
        )
