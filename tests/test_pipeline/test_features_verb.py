"""``mirstore features``: which versions there are, what made them, who uses them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from features.framing import Grid
from pipeline import FeatureStore
from pipeline.store.index import Index
from pipeline.store.lineage import library_versions
from pipeline.store.records import ArrayRow, TrackRow
from pipeline.store.versions import feature_versions

AUDIO = "audio: {kind: audio}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_mels: 32}"


def test_versions_of_a_store(empty_project: Any) -> None:
    for seed, name in enumerate("ab"):
        empty_project.add_song(f"{name}.wav", seconds=2.0, seed=seed)
    empty_project.write_catalog(AUDIO, LOGMEL)
    empty_project.extract()
    old = empty_project.store["logmel"].fingerprint
    empty_project.write_catalog(AUDIO, LOGMEL.replace("32", "48"))
    before = empty_project.run_json("features")["features"]
    assert [(f["feature"], f["in_catalog"]) for f in before] == [("audio", True), ("logmel", False)]
    empty_project.extract()
    new = empty_project.store["logmel"].fingerprint
    for name, card in {
        "bof/1": {"features": [old, f"audio@{before[0]['fingerprint']}"]},
        "bof/2": {"features": [f"logmel@{new}"]},
        "odd/1": {"features": None},
        "odd/2": "{not JSON",
        "odd/3": None,
    }.items():
        folder = empty_project.store_folder / "models" / name
        folder.mkdir(parents=True)
        if card is not None:
            (folder / "card.json").write_text(card if isinstance(card, str) else json.dumps(card))
    (empty_project.store_folder / "models" / "README").write_text("no folder")
    found = empty_project.run_json("features")
    versions = {f["fingerprint"]: f for f in found["features"]}
    assert set(versions) == {before[0]["fingerprint"], old, new}
    assert (versions[old]["in_catalog"], versions[new]["in_catalog"]) == (False, True)
    assert (versions[old]["models"], versions[new]["models"]) == (["bof/1"], ["bof/2"])
    assert versions[before[0]["fingerprint"]]["models"] == ["bof/1"]
    assert [remark.split(" ")[0] for remark in found["remarks"]] == [
        f"models/odd/{n}/card.json" for n in (1, 2, 3)
    ]
    assert (versions[new]["parameters"]["n_mels"], versions[old]["parameters"]["n_mels"]) == (48, 32)
    assert (versions[new]["tracks"], versions[new]["of_tracks"]) == (2, 2)
    computed = versions[new]["computed_with"]
    assert sum(one["parts"] for one in computed) == versions[new]["parts"]
    assert computed[0]["libraries"].items() >= library_versions().items()
    printed = empty_project.run("features").stdout
    assert f"numpy {library_versions()['numpy']}" in printed
    assert "n_mels 48" in printed
    assert "models/odd/2/card.json cannot be read" in printed
    past = empty_project.run_json("features", "--snapshot", str(empty_project.store.snapshot - 1))
    assert [f["fingerprint"] for f in past["features"]] == [before[0]["fingerprint"], old]


def test_parts_of_several_library_versions_are_counted(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "store", Grid())
    one = ArrayRow(
        "p0", "mfcc", "f", "mfcc", "mfcc@f", 1, 1, "float16", "[2, 3]", '{"n_mfcc": 2}', '{"numpy": "2.4.6"}'
    )
    arrays = [replace(one, part=f"p{n}") for n in range(3)] + [
        replace(one, part="q", computed_with='{"numpy": "2.5.0"}')
    ]
    track = TrackRow(
        "demo/a", "demo", "/a", 1, 1, "ok", part="p0", row_start=0, n_chunks=1, n_samples=9, duration_s=3600.0
    )
    index.commit(arrays=arrays, added=[track], provenance={"command": "test"})
    table = feature_versions(FeatureStore(tmp_path / "store")).table
    assert table.loc[0, "computed_with"] == [
        {"libraries": {"numpy": "2.4.6"}, "parts": 3},
        {"libraries": {"numpy": "2.5.0"}, "parts": 1},
    ]
    assert (table.loc[0, "in_catalog"], table.loc[0, "hours"], table.loc[0, "parts"]) == (None, 1.0, 4)


def test_an_empty_store(tmp_path: Path) -> None:
    Index.create(tmp_path / "store", Grid())
    found = feature_versions(FeatureStore(tmp_path / "store"))
    assert (len(found.table), found.remarks) == (0, ())
