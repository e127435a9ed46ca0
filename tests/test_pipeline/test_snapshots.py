"""The store's past: what there was, and what changed since."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from features.framing import Grid
from pipeline import FeatureStore
from pipeline.errors import UnknownNameError
from pipeline.labels import add_labels
from pipeline.store.differences import Differences, differences
from pipeline.store.index import Index
from pipeline.store.records import ArrayRow, TrackRow, track_rows

ABOUT = {"command": "test"}


def row(number: int, **columns: Any) -> TrackRow:
    known = {
        "part": "p",
        "row_start": number,
        "n_chunks": 1,
        "n_samples": 12_000,
        "content_hash": f"{number}",
    }
    return TrackRow(f"demo/{number}", "demo", f"/music/{number}", 1, 1, "ok", **{**known, **columns})


def array(part: str, fingerprint: str, feature: str = "mfcc") -> ArrayRow:
    return ArrayRow(
        part, feature, fingerprint, "mfcc", f"{feature}@{fingerprint}", 9, 1, "float16", "[2, 3]", "{}", "{}"
    )


def changed(found: Differences) -> dict[str, tuple[str, str]]:
    return {track: (change, what) for track, change, what in found.tracks.itertuples(index=False)}


def test_each_kind_of_change_is_told(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "store", Grid())
    rows = [row(n, labels='{"a": 1, "b": 2}') for n in range(8)]
    index.commit(arrays=[array("p", "one"), array("p", "old")], added=rows, provenance=ABOUT)
    old = FeatureStore(tmp_path / "store")
    assert differences(old, old).tracks.empty
    assert differences(old, old).features.empty
    index.commit(
        arrays=[array("p", "two", "logmel"), array("q", "one")],
        updated=[
            replace(rows[0], content_hash="new", n_samples=13_000),
            replace(rows[1], labels='{"b": 2, "a": 3}'),
            replace(rows[2], labels='{"b": 2, "a": 1}'),  # the same labels
            replace(rows[3], status="gone", uri="/elsewhere"),
            replace(rows[4], part="q", row_start=77),  # compacted
            replace(rows[5], added_labels='{"c": true}', mtime_ns=2),
            row(10, part="q"),
        ],
        removed=["demo/6"],
        dropped="fingerprint = 'old'",
        provenance=ABOUT,
    )
    found = differences(old, FeatureStore(tmp_path / "store"))
    assert (found.old, found.new) == (old.snapshot, old.snapshot + 1)
    assert changed(found) == {
        "demo/0": ("changed", "content"),
        "demo/1": ("changed", "labels"),
        "demo/10": ("added", ""),
        "demo/3": ("changed", "status, location"),
        "demo/5": ("changed", "labels, file"),
        "demo/6": ("removed", ""),
    }
    assert found.features.to_dict(orient="split")["data"] == [
        ["logmel", "two", "added", 0, 6],
        ["mfcc", "old", "removed", 8, 0],
    ]
    index.commit(updated=[row(11, part="q"), row(12, part="q")], provenance=ABOUT)
    grown = differences(
        found_store := FeatureStore(tmp_path / "store").at(found.new), FeatureStore(tmp_path / "store")
    )
    assert grown.features.to_dict(orient="split")["data"] == [["mfcc", "one", "grown", 8, 10]]
    shrunk = differences(FeatureStore(tmp_path / "store"), found_store)
    assert shrunk.features.to_dict(orient="split")["data"] == [["mfcc", "one", "shrunk", 10, 8]]


states = st.dictionaries(
    st.integers(0, 5),
    st.tuples(
        st.sampled_from([None, "x", "y"]), st.sampled_from([None, "{}", '{"a": 1}']), st.sampled_from("pq")
    ),
)


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(states, states)
def test_any_two_states_are_compared_as_dictionaries_are(tmp_path_factory: Any, one: Any, other: Any) -> None:
    folder = tmp_path_factory.mktemp("states") / "store"
    index = Index.create(folder, Grid())
    stores = []
    before: set[int] = set()
    for state in (one, other):
        rows = [
            row(n, content_hash=c, added_labels=labels, part=part) for n, (c, labels, part) in state.items()
        ]
        index.commit(updated=rows, removed=[f"demo/{n}" for n in before - set(state)], provenance=ABOUT)
        before = set(state)
        stores.append(FeatureStore(folder))
    expected = {}
    for n in one.keys() | other.keys():
        if n not in one or n not in other:
            expected[f"demo/{n}"] = ("added" if n in other else "removed", "")
            continue
        (content, labels, _), (new_content, new_labels, _) = one[n], other[n]
        what = ["content"] * (content != new_content)
        what += ["labels"] * (json.loads(labels or "{}") != json.loads(new_labels or "{}"))
        if what:
            expected[f"demo/{n}"] = ("changed", ", ".join(what))
    assert changed(differences(*stores)) == expected


def test_forgotten_tracks_are_not_told(tmp_path: Path) -> None:
    from pipeline.store.erasures import Erasure, Span

    index = Index.create(tmp_path / "store", Grid())
    index.commit(arrays=[array("p", "one")], added=[row(0), row(1)], provenance=ABOUT)
    index.commit(removed=["demo/1"], provenance=ABOUT)
    store = FeatureStore(tmp_path / "store")
    assert changed(differences(store.at(1), store)) == {"demo/1": ("removed", "")}
    Erasure("erased/x.json", (Span("p", 1, 1),), blocked=(), done=True).write(store.location)
    store = FeatureStore(tmp_path / "store")
    assert changed(differences(store.at(1), store)) == {}


def test_the_commands(empty_project: Any) -> None:
    for seed, name in enumerate("abc"):
        empty_project.add_song(f"{name}.wav", seconds=1.0, seed=seed)
    empty_project.write_catalog("audio: {kind: audio}")
    empty_project.extract()
    first = empty_project.store.snapshot
    add_labels(empty_project.catalog, pd.DataFrame({"track_id": ["demo/a.wav"], "genre": ["folk"]}))
    shutil.move(empty_project.music / "b.wav", empty_project.music / "z.wav")
    empty_project.add_song("c.wav", seconds=2.0, seed=7)
    (empty_project.music / "broken.wav").write_bytes(b"not audio")
    empty_project.write_catalog("audio: {kind: audio}", "logmel: {kind: log_mel, from: audio, n_mels: 32}")
    empty_project.extract()
    last = empty_project.store.snapshot

    found = empty_project.run_json("diff", str(first))
    assert (found["old"], found["new"]) == (first, last)
    assert {track["track_id"]: (track["change"], track["what"]) for track in found["tracks"]} == {
        "demo/a.wav": ("changed", "labels"),
        "demo/b.wav": ("removed", ""),
        "demo/z.wav": ("added", ""),
        "demo/c.wav": ("changed", "content, file"),
        "demo/broken.wav": ("added", ""),
    }
    assert [(f["feature"], f["change"], f["before"], f["after"]) for f in found["features"]] == [
        ("logmel", "added", 0, 3)
    ]
    assert "demo/c.wav" in empty_project.run("diff", str(first), str(last)).stdout
    assert "Nothing changed" in empty_project.run("diff", str(last)).stdout
    assert empty_project.run("diff", "99").returncode == 2

    listed = empty_project.run_json("snapshots")
    assert [commit["snapshot"] for commit in listed] == list(range(last, -1, -1))
    labelling = next(commit for commit in listed if commit["command"] == "labels add")
    assert (labelling["snapshot"], labelling["counts"]) == (first + 1, {"updated": 1})
    assert [commit["snapshot"] for commit in empty_project.run_json("snapshots", "--number", "2")] == [
        last,
        last - 1,
    ]
    assert "labels add" in empty_project.run("snapshots").stdout

    past = ("--snapshot", str(first))
    assert empty_project.run_json("status", *past)["tracks"] == 3
    assert [f["feature"] for f in empty_project.run_json("status", *past)["features"]] == ["audio"]
    assert empty_project.run_json("status", *past)["orphan_parts"] == 0
    assert empty_project.run_json("failures", *past) == []
    assert len(empty_project.run_json("failures")) == 1
    assert empty_project.run("show", "demo/b.wav", *past).returncode == 0
    assert "no track" in empty_project.run("show", "demo/b.wav").stderr
    with pytest.raises(UnknownNameError, match="has no snapshot 99"):
        FeatureStore(empty_project.catalog, snapshot=99)


def test_rows_of_the_past_are_those_that_were_committed(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "store", Grid())
    states = [[row(0)], [row(0), row(1)], [row(0, labels='{"a": 1}'), row(1)]]
    for state in states:
        index.commit(updated=state, provenance=ABOUT)
    for number, state in enumerate(states, start=1):
        assert track_rows(Index(tmp_path / "store", number).tracks().sort_values("track_id")) == state


def test_without_a_catalog_a_feature_is_what_was_last_extracted(empty_project: Any) -> None:
    empty_project.add_song("a.wav")
    audio = "audio: {kind: audio}"
    for n_mels in (8, 12, 10, 9):
        empty_project.write_catalog(audio, f"logmel: {{kind: log_mel, from: audio, n_mels: {n_mels}}}")
        empty_project.extract()
        store = FeatureStore(empty_project.store_folder)
        assert store["logmel"].row_shape == (n_mels, 64)
    first = next(n for n in range(store.snapshot) if "logmel" in list(store.at(n)))
    assert store.at(first)["logmel"].row_shape == (8, 64)
    Index(empty_project.store_folder)._arrays.optimize.compact()
    assert FeatureStore(empty_project.store_folder)["logmel"].row_shape == (9, 64)
