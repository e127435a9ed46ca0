"""The store's past: what there was, and what changed since."""

import hashlib
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
from pipeline.store.lineage import commits_table
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


def failed_files(found: Differences) -> dict[str, tuple[str, str]]:
    assert list(found.failed_files.columns) == list(found.tracks.columns)
    assert found.failed_files["old_track_id"].isna().all()
    return {track: (change, what) for track, change, what, _ in found.failed_files.itertuples(index=False)}


def changed(found: Differences) -> dict[str, tuple[str, str]]:
    assert list(found.tracks.columns) == ["track_id", "change", "what", "old_track_id"]
    assert found.tracks["old_track_id"].notna().tolist() == found.tracks["change"].eq("moved").tolist()
    return {
        track if old is None else f"{old} -> {track}": (change, what)
        for track, change, what, old in found.tracks.itertuples(index=False)
    }


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
        "demo/3": ("gone", "location"),
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


def test_a_moved_track_is_told_with_both_names(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "store", Grid())
    unread = {"part": None, "row_start": None, "n_chunks": None, "status": "failed", "stage": "open"}
    rows = [*(row(n, labels='{"a": 1}') for n in range(5)), replace(row(8), **unread)]
    index.commit(arrays=[array("p", "one"), array("q", "one")], added=rows, provenance=ABOUT)
    moved = {
        n: replace(rows[n], track_id=f"demo/new {n}", uri=f"/music/new {n}", mtime_ns=1 + n)
        for n in (0, 1, 2)
    }
    index.commit(
        updated=[
            moved[0],
            replace(moved[1], labels='{"a": 2}', track_id="other/1", collection="other"),
            replace(moved[2], part="q"),  # the same content in other rows: not by a move
            replace(row(3), track_id="demo/copy", row_start=9),
            replace(row(9), **unread),  # what has no rows cannot have them of another
        ],
        removed=["demo/0", "demo/1", "demo/2", "demo/8"],
        provenance=ABOUT,
    )
    store = FeatureStore(tmp_path / "store")
    found = differences(store.at(1), store)
    assert changed(found) == {
        "demo/0 -> demo/new 0": ("moved", ""),
        "demo/1 -> other/1": ("moved", "labels, file"),
        "demo/2": ("removed", ""),
        "demo/copy": ("added", ""),
        "demo/new 2": ("added", ""),
    }
    assert failed_files(found) == {"demo/8": ("removed", ""), "demo/9": ("failed", "")}
    back = changed(differences(store, store.at(1)))
    assert back["other/1 -> demo/1"] == ("moved", "labels, file")
    assert back["demo/new 0 -> demo/0"] == ("moved", "")


def test_tracks_and_failed_files_are_told_apart(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "store", Grid())
    unread = {"part": None, "row_start": None, "n_chunks": None, "status": "failed", "stage": "open"}
    first = [row(n) for n in range(4)] + [replace(row(n), **unread) for n in range(4, 9)]
    second = [
        replace(first[0], status="gone"),
        replace(first[1], status="gone"),
        replace(first[2], status="failed", stage="decode", reason="no"),
        replace(first[4], status="gone"),
        replace(first[5], reason="worse"),
        row(6),  # it decodes now
        replace(row(9), **unread),
    ]
    third = [first[0], replace(first[1], content_hash="new"), first[4]]
    index.commit(arrays=[array("p", "one")], added=first, provenance=ABOUT)
    index.commit(updated=second, removed=["demo/7"], provenance=ABOUT)
    index.commit(updated=third, provenance=ABOUT)
    store = FeatureStore(tmp_path / "store")
    found = differences(store.at(1), store.at(2))
    assert changed(found) == {
        "demo/0": ("gone", ""),
        "demo/1": ("gone", ""),
        "demo/2": ("changed", "status"),
        "demo/6": ("added", ""),
    }
    assert failed_files(found) == {
        "demo/4": ("gone", ""),
        "demo/5": ("changed", "status"),
        "demo/7": ("removed", ""),
        "demo/9": ("failed", ""),
    }
    found = differences(store.at(2), store)
    assert changed(found) == {"demo/0": ("back", ""), "demo/1": ("back", "content")}
    assert failed_files(found) == {"demo/4": ("back", "")}
    found = differences(store.at(0), store.at(1))
    assert set(changed(found).values()) == {("added", "")}
    assert set(failed_files(found).values()) == {("failed", "")}
    assert len(changed(found)) == found.features["after"].item() == 4


states = st.dictionaries(
    st.integers(0, 5),
    st.tuples(
        st.sampled_from([None, "x", "y"]), st.sampled_from([None, "{}", '{"a": 1}']), st.sampled_from("pq")
    ),
)
places = st.permutations(range(6))  # of the rows in their part, by number of the track


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(states, states, places, places)
def test_any_two_states_are_compared_as_dictionaries_are(
    tmp_path_factory: Any, one: Any, other: Any, starts: Any, new_starts: Any
) -> None:
    folder = tmp_path_factory.mktemp("states") / "store"
    index = Index.create(folder, Grid())
    stores = []
    before: set[int] = set()
    for state, start in ((one, starts), (other, new_starts)):
        rows = [
            row(n, content_hash=c, added_labels=labels, part=part, row_start=start[n])
            for n, (c, labels, part) in state.items()
        ]
        index.commit(updated=rows, removed=[f"demo/{n}" for n in before - set(state)], provenance=ABOUT)
        before = set(state)
        stores.append(FeatureStore(folder))
    expected = {}
    pairs = {(n, n) for n in one.keys() & other.keys()} | {
        (n, m)
        for n in one.keys() - other.keys()
        for m in other.keys() - one.keys()
        if (one[n][2], starts[n]) == (other[m][2], new_starts[m])
    }
    for n, m in pairs:
        (content, labels, _), (new_content, new_labels, _) = one[n], other[m]
        what = ["content"] * (content != new_content)
        what += ["labels"] * (json.loads(labels or "{}") != json.loads(new_labels or "{}"))
        if n != m:
            expected[f"demo/{n} -> demo/{m}"] = ("moved", ", ".join(what))
        elif what:
            expected[f"demo/{n}"] = ("changed", ", ".join(what))
    expected |= {f"demo/{n}": ("removed", "") for n in one.keys() - {n for n, _ in pairs}}
    expected |= {f"demo/{m}": ("added", "") for m in other.keys() - {m for _, m in pairs}}
    assert changed(differences(*stores)) == expected


def test_commits_of_older_versions_and_other_tools_are_told_too() -> None:
    told = commits_table(
        [
            (3, {"timestamp": 3, "operation": "WRITE"}),
            (2, {"timestamp": 2, "operation": "MERGE", "counts": '{"updated": 3, "removed": 1}'}),
            (1, {"timestamp": 1, "operation": "MERGE", "counts": '{"marked_gone": 1200}'}),
            (0, {"timestamp": 0, "operation": "CREATE TABLE"}),
        ]
    )
    assert told["changes"].tolist() == [
        "upkeep of the index",
        "3 updated, 1 removed",
        "1,200 marked gone",
        "store made",
    ]


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
        "demo/z.wav": ("moved", ""),
        "demo/c.wav": ("changed", "content, file"),
    }
    assert [(file["track_id"], file["change"]) for file in found["failed_files"]] == [
        ("demo/broken.wav", "failed")
    ]
    assert [(f["feature"], f["change"], f["before"], f["after"]) for f in found["features"]] == [
        ("logmel", "added", 0, 3)
    ]
    assert {track["track_id"]: track["old_track_id"] for track in found["tracks"]}[
        "demo/z.wav"
    ] == "demo/b.wav"
    assert {track["old_track_id"] for track in found["tracks"]} == {None, "demo/b.wav"}
    told = empty_project.run("diff", str(first), str(last)).stdout
    assert "demo/c.wav" in told
    assert "demo/b.wav -> demo/z.wav" in told
    sums = [line.split() for line in told.split("\n\n")[1].splitlines()[1:]]
    assert ["1", "failed", "file", "failed"] in sums
    assert ["1", "track", "moved"] in sums
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
    assert empty_project.run_json("failures", *past)["failed"] == []
    assert len(empty_project.run_json("failures")["failed"]) == 1
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


def test_every_commit_names_the_catalog(empty_project: Any) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        empty_project.add_song(name, seconds=1.0)
    empty_project.extract()
    (empty_project.folder / "tags.csv").write_text("track_id,mood\ndemo/a.wav,calm\n")
    (empty_project.music / "c.wav").unlink()
    empty_project.extract()
    for command in (
        ("labels", "add", "tags.csv"),
        ("prune",),
        ("forget", "demo/b.wav"),
        ("compact",),
        ("gc", "--grace", "0", "--keep", "0"),
    ):
        before = empty_project.store.snapshot
        done = empty_project.run(*command)
        assert done.returncode == 0, done.stderr
        assert empty_project.store.snapshot > before
    digest = hashlib.sha256(empty_project.catalog.read_bytes()).hexdigest()
    written = Index(empty_project.store_folder)
    for number in range(1, written.version + 1):
        assert written.commit_info(number)["catalog"] == digest, written.commit_info(number)
    # A store by its own name has no catalog.
    add_labels(empty_project.store_folder, pd.DataFrame({"track_id": ["demo/a.wav"], "mood": ["wild"]}))
    assert empty_project.store.snapshots["catalog"].iloc[0] is None
