"""``mirstore status``: what the store holds."""

from pipeline.commands.output import (
    DEFAULT_CATALOG,
    CatalogOption,
    JsonOption,
    SnapshotOption,
    console,
    counted,
    print_json,
    print_table,
    readable_bytes,
    short_path,
)


def status(
    catalog: CatalogOption = DEFAULT_CATALOG, snapshot: SnapshotOption = None, as_json: JsonOption = False
) -> None:
    """What the store holds: tracks, hours and bytes by feature."""
    from pipeline.store.reading import FeatureStore
    from pipeline.store.summary import features_table, summary

    store = FeatureStore(catalog, snapshot=snapshot)
    facts, features = summary(store), features_table(store)
    if as_json:
        print_json({**facts, "features": features.to_dict(orient="records")})
        return
    out = console()
    out.print(short_path(str(store.location)))
    notes = [
        f"{facts[key]:,} {words}"
        for key, words in (
            ("truncated", "truncated"),
            ("gone", "gone"),
            ("failed_since", "whose file has failed since"),
        )
        if facts[key]
    ]
    out.print(", ".join([counted(facts["tracks"], "track"), f"{facts['hours']:.2f} h", *notes]))
    others = [counted(facts["failed_files"], "failed file")] if facts["failed_files"] else []
    others += [f"{facts['failed_files_gone']:,} gone"] if facts["failed_files_gone"] else []
    others += [f"{facts['forgotten']:,} forgotten"] if facts["forgotten"] else []
    if others:
        out.print(", ".join(others))
    out.print(f"{counted(facts['parts'], 'part')}, {readable_bytes(facts['bytes'])}")
    orphans = [
        counted(facts[f"orphan_{noun}s"], noun) for noun in ("part", "array") if facts[f"orphan_{noun}s"]
    ]
    if orphans:
        size = readable_bytes(facts["orphan_bytes"])
        out.print(
            f"and {', '.join(orphans)}, {size}, of killed runs or older snapshots: `mirstore gc` removes "
            "what none needs"
        )
    out.print(f"snapshot {facts['commit']}, {facts['committed']}, by `{facts['command'] or 'mirstore'}`")
    if len(features):
        out.print()
        print_table(
            ["feature", "version", "type", "tracks", "chunks", "hours", "size"],
            [
                [
                    row.feature,
                    row.fingerprint,
                    row.dtype,
                    f"{row.tracks:,}",
                    f"{row.chunks:,}",
                    f"{row.hours:.2f}",
                    readable_bytes(row.bytes),
                ]
                for row in features.itertuples(index=False)
            ],
            right=["tracks", "chunks", "hours", "size"],
        )
