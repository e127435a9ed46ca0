"""Upkeep of a store: prune, forget, drop, compact, gc, verify, each on a store made by extraction."""

import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline import FeatureStore, extract
from pipeline.errors import StoreDamagedError, StoreError, UnknownNameError
from pipeline.store import removal, tracks_ever
from pipeline.store.compaction import TARGET_ROWS, compact, groups_to_merge
from pipeline.store.erasures import (
    DONE_FILES_KEPT,
    Erasure,
    Span,
    blocked_contents,
    blocked_hashes,
    erased_spans,
    erasures,
    name_hash,
)
from pipeline.store.folder import Folder
from pipeline.store.garbage import collect_garbage
from pipeline.store.index import Index, writable_index
from pipeline.store.records import ArrayRow, track_rows
from pipeline.store.shard_reader import ShardReader, blank_rows
from pipeline.store.summary import summary
from pipeline.store.verification import verify

AUDIO = "audio: {kind: audio}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_mels: 8}"
FINE = "logmel: {kind: log_mel, from: audio, n_mels: 12}"
CATALOG = """\
version: 1
store: ./store
grid: {frames_per_chunk: 64, min_tail_s: 0.5}
collections:
  demo: {path: ./music}
features:
  audio: {kind: audio}
  logmel: {kind: log_mel, from: audio, n_mels: 8}
"""
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, scheduler: str) -> Path:
    """A project of one part with four tracks of noise, two chunks each; not to be changed."""
    import soundfile as sf

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "music").mkdir()
    for seed, name in enumerate(NAMES):
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 12_000 * 2)
        sf.write(folder / "music" / f"{name}.wav", noise, 12_000)
    (folder / "catalog.yaml").write_text(CATALOG)
    assert extract(folder / "catalog.yaml", scheduler=scheduler).songs == len(NAMES)
    return folder


@pytest.fixture
def small(empty_project: Any, prepared: Path) -> Any:
    """The prepared project's own copy."""
    shutil.copytree(prepared, empty_project.folder, dirs_exist_ok=True)
    return empty_project


def track(name: str) -> str:
    return f"demo/{name}.wav"


def failed(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line of a command that fails as expected."""
    assert done.returncode == code, (done.stdout, done.stderr)
    [line] = done.stderr.splitlines()
    assert line.startswith("mirstore: ")
    return line


def pieces(project: Any, name: str) -> set[bytes]:
    """Bytes of a track's stored rows, as they lie in the shards, of all versions: noise, so they are unlike."""
    store = FeatureStore(project.store_folder)
    found = set()
    for version in set(store.arrays["feature"] + "@" + store.arrays["fingerprint"]):
        feature = store[version]
        if name in feature.tracks.index:
            part, start, count, _ = feature._span(name)
            reader = ShardReader(store.location, part, feature.rows.arrays[part])
            found |= {row[40:104] for row in reader.encoded(start, start + count)}
    assert found
    return found


def is_anywhere(project: Any, wanted: set[bytes]) -> bool:
    files = [path.read_bytes() for path in project.store_folder.rglob("*") if path.is_file()]
    return any(piece in content for piece in wanted for content in files)


def replace_song(project: Any, name: str, seed: int) -> None:
    import soundfile as sf

    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 12_000 * 2)
    sf.write(project.music / f"{name}.wav", noise, 12_000)


# Prune


def test_prune_removes_what_is_gone_and_only_that(small: Any) -> None:
    before = small.rows()
    first = small.store.snapshot
    (small.music / "b.wav").unlink()
    small.extract()
    assert small.store.tracks.loc[track("b"), "status"] == "gone"
    found = {"tracks": [track("b")], "failed_files": [], "unlisted": {}}
    assert small.run_json("prune", "--dry-run") == {"dry_run": True, **found}
    assert small.rows() == before
    unknown = small.run("prune", "--collection", "dmeo")
    assert (unknown.returncode, "Did you mean 'demo'?" in unknown.stderr) == (2, True)
    assert small.run_json("prune", "--collection", "demo") == {"dry_run": False, **found}
    left = {key: rows for key, rows in before.items() if key[0] != track("b")}
    assert small.rows() == left
    past = small.store.at(first)
    assert (
        past["audio"].stored(track("b")).tobytes() == before[track("b"), f"audio@{past['audio'].fingerprint}"]
    )
    assert small.run_json("prune") == {"dry_run": False, "tracks": [], "failed_files": [], "unlisted": {}}
    assert "0 tracks removed" in small.run("prune").stdout
    assert verify(small.store_folder).is_sound


def test_prune_of_most_of_a_collection_must_be_asked_for(small: Any) -> None:
    """As after a disk went away, and one new song was put in its place."""
    for name in ("a", "b", "c"):
        (small.music / f"{name}.wav").unlink()
    small.extract()
    refused = small.run("prune")
    assert refused.returncode == 2
    assert "would remove 3 of the 4 tracks of demo" in refused.stderr
    assert len(small.store.tracks) == 4
    assert small.run_json("prune", "--collection", "demo")["tracks"] == [track(name) for name in "abc"]
    assert list(small.store.tracks.index) == [track("d")]


def test_prune_of_a_collection_that_the_catalog_has_no_more(small: Any) -> None:
    small.catalog.write_text(
        small.catalog.read_text().replace("demo: {path: ./music}", "other: {path: ./none}")
    )
    (small.folder / "none").mkdir()
    assert small.run_json("prune")["unlisted"] == {"demo": 4}
    assert "4 tracks of demo, which the catalog does not have" in small.run("prune").stdout
    assert small.run_json("prune", "--collection", "demo")["tracks"] == [track(name) for name in NAMES]
    assert len(small.store.tracks) == 0


def test_pruned_track_that_comes_back_is_new(small: Any) -> None:
    path = small.music / "a.wav"
    content = path.read_bytes()
    path.unlink()
    small.extract()
    removal.prune(small.store_folder)
    path.write_bytes(content)
    assert small.plan()[track("a")] == ("extract", "new")


def emptied_beside_another(small: Any) -> None:
    """All of `demo` and of `third` has gone, of `other` one of two."""
    for number, name in enumerate(("other", "third")):
        for seed in range(2 - number):
            small.add_song(f"../{name}/{seed}.wav", seconds=1.0, seed=10 * number + seed)
    small.write_catalog(AUDIO, LOGMEL, demo="./music", other="./other", third="./third")
    small.extract()
    for path in (*small.music.iterdir(), small.folder / "other" / "0.wav", small.folder / "third" / "0.wav"):
        path.unlink()
    small.extract()


def test_a_collection_that_would_lose_everything_must_be_named(small: Any) -> None:
    emptied_beside_another(small)
    before, snapshot = small.rows(), small.store.snapshot
    line = failed(small.run("prune"))
    for words in (
        "all 4 tracks of demo",
        "the only track of third",
        "`--collection demo`",
        "`--collection third`",
    ):
        assert words in line
    assert "other" not in line
    with pytest.raises(StoreError, match="all 4 tracks of demo"):
        removal.prune(small.store_folder)
    gone = [*map(track, NAMES), "other/0.wav", "third/0.wav"]
    for options in ((), ("--json",)):  # a dry run says what the command would do: refuse
        dry = small.run("prune", "--dry-run", *options)
        assert (failed(dry), dry.stdout) == (line, "")
    dry = small.run("prune", "--dry-run", "--collection", "demo")
    assert dry.stdout.splitlines() == [*gone[:4], "4 tracks would be removed."]
    assert (small.rows(), small.store.snapshot) == (before, snapshot)
    assert small.run_json("prune", "--collection", "demo")["tracks"] == gone[:4]
    assert failed(small.run("prune")) == line.replace("all 4 tracks of demo and ", "").replace(
        "`--collection demo`, `--collection third`, one at a time", "`--collection third`"
    )
    assert small.run_json("prune", "--collection", "other")["tracks"] == ["other/0.wav"]
    assert small.run_json("prune", "--collection", "third")["tracks"] == ["third/0.wav"]
    assert small.run_json("prune")["tracks"] == []
    assert small.rows() == {key: rows for key, rows in before.items() if key[0] == "other/1.wav"}


def test_failures_that_have_gone_are_no_loss(small: Any) -> None:
    for folder in ("music", "other"):
        (small.folder / folder).mkdir(exist_ok=True)
        (small.folder / folder / "x.wav").write_bytes(b"no audio")
    small.write_catalog(AUDIO, LOGMEL, demo="./music", other="./other")
    small.extract()
    for folder in ("music", "other"):
        (small.folder / folder / "x.wav").unlink()
    assert small.extract().emptied == {}
    assert removal.prune(small.store_folder) == removal.Pruned((), ("demo/x.wav", "other/x.wav"))


def test_a_failed_track_with_features_is_left_of_its_collection(small: Any) -> None:
    """Of a link whose target is on a disk that is away nothing is known, so not everything is gone."""
    for name in NAMES[1:]:
        (small.music / f"{name}.wav").unlink()
    (small.music / "a.wav").rename(small.folder / "a.wav")
    (small.music / "a.wav").symlink_to("nowhere")
    assert small.extract().emptied == {}
    with pytest.raises(StoreError, match="3 of the 4 tracks of demo"):
        removal.prune(small.store_folder)
    removed = removal.prune(small.store_folder, collection="demo")
    assert removed == removal.Pruned(tuple(map(track, NAMES[1:])), ())


# Forget


def test_unknown_name_forgets_nothing(small: Any) -> None:
    before, snapshot = small.rows(), small.store.snapshot
    line = failed(small.run("forget", track("a"), "demo/e.wav"))
    assert "Nothing was forgotten" in line
    assert "'demo/e.wav'" in line
    assert small.rows() == before
    assert small.store.snapshot == snapshot
    assert not (small.store_folder / "erased").exists()


def test_forgotten_track_is_nowhere(small: Any) -> None:
    store = small.store
    before, snapshot, placed = small.rows(), store.snapshot, store.tracks
    wanted = pieces(small, track("b"))
    assert is_anywhere(small, wanted)
    part = placed.loc[track("b"), "part"]
    told = {"track_id": track("b"), "other_names": [], "chunks": 2, "parts": [part], "copies": []}
    assert small.run_json("forget", track("b")) == {
        "tracks": [told],
        "chunks": 2,
        "parts": 1,
        "dry_run": False,
    }
    assert not is_anywhere(small, wanted)
    assert small.rows() == {key: rows for key, rows in before.items() if key[0] != track("b")}
    assert track("b") not in small.store.at(snapshot).tracks.index
    assert track("b") not in FeatureStore(small.store_folder, snapshot=snapshot).spans.track_ids
    assert verify(small.store_folder).is_sound
    assert verify(small.store_folder, snapshot=snapshot).is_sound
    # Plain zarr sees zeros in its place, and the neighbours.
    array = zarr.open_array(small.store_folder / "parts" / part / store["audio"].rows.arrays[part], mode="r")
    for name in NAMES:
        start = int(placed.loc[track(name), "row_start"])
        rows = np.asarray(array[start : start + 2])
        if name == "b":
            assert not rows.any()
        else:
            version = f"audio@{store['audio'].fingerprint}"
            assert rows.tobytes() == before[track(name), version]
    text = (small.store_folder / "parts" / part / "zarr.json").read_text()
    assert track("b") not in text
    assert track("a") in text


def test_all_that_ever_was_of_a_track_is_forgotten(small: Any) -> None:
    """Earlier versions of its file, under an earlier name, copies that compaction made, orphans."""
    wanted = pieces(small, track("a"))
    (small.music / "a.wav").rename(small.music / "moved.wav")
    assert small.extract().moved == 1
    replace_song(small, "moved", 77)
    small.write_catalog(AUDIO, FINE)
    small.extract()
    wanted |= pieces(small, track("moved"))
    assert compact(small.store_folder, least_live=0.95).rewritten
    replace_song(small, "moved", 78)
    small.extract()
    wanted |= pieces(small, track("moved"))
    part = small.store.tracks.loc[track("moved"), "part"]
    shutil.copytree(small.store_folder / "parts" / part, small.store_folder / "parts" / "orphan")
    others = {key: rows for key, rows in small.rows().items() if key[0] != track("moved")}
    assert is_anywhere(small, wanted)
    removal.forget(small.store_folder, [track("moved")])
    assert not is_anywhere(small, wanted)
    assert small.rows() == others
    assert verify(small.store_folder).is_sound


def test_rows_that_no_table_knows_any_more_are_forgotten_too(small: Any) -> None:
    """The track's file changed, and gc has removed the tables that said where its old rows lie."""
    wanted = pieces(small, track("a"))
    replace_song(small, "a", 90)
    small.extract()
    collect_garbage(small.store_folder, grace_s=0, keep_s=0)
    assert is_anywhere(small, wanted), "the old rows lie in a part that others need"
    before = small.rows()
    removal.forget(small.store_folder, [track("a")])
    assert not is_anywhere(small, wanted)
    assert small.rows() == {key: rows for key, rows in before.items() if key[0] != track("a")}


def test_rows_that_only_parts_know_under_an_earlier_name_are_forgotten_too(small: Any) -> None:
    """The part with the newest rows is whole, so that it is looked into only because they are the track's."""
    wanted = pieces(small, track("a"))
    replace_song(small, "a", 91)
    small.extract()
    wanted |= pieces(small, track("a"))
    (small.music / "a.wav").rename(small.music / "moved.wav")
    assert small.extract().moved == 1
    collect_garbage(small.store_folder, grace_s=0, keep_s=0)
    before = small.rows()
    assert removal.forget(small.store_folder, [track("moved")]).parts == 2
    assert not is_anywhere(small, wanted)
    assert small.rows() == {key: rows for key, rows in before.items() if key[0] != track("moved")}


def test_only_parts_with_rows_that_are_nobodys_are_looked_into(small: Any) -> None:
    def looked_into() -> set[str]:
        return tracks_ever._parts_with_dead_rows(Index(small.store_folder))

    first = small.store.tracks.loc[track("a"), "part"]
    assert looked_into() == set()
    replace_song(small, "a", 92)
    small.extract()
    assert looked_into() == {first}
    removal.forget(small.store_folder, [track("a")])
    assert looked_into() == set()
    (small.music / "b.wav").unlink()
    small.extract()
    removal.prune(small.store_folder)
    assert looked_into() == {first}


def test_orphans_under_an_earlier_name_are_forgotten(small: Any) -> None:
    wanted = pieces(small, track("a"))
    part = small.store.tracks["part"].iloc[0]
    shutil.copytree(small.store_folder / "parts" / part, small.store_folder / "parts" / "orphan")
    (small.music / "a.wav").rename(small.music / "moved.wav")
    small.extract()
    removal.forget(small.store_folder, [track("moved")])
    assert not is_anywhere(small, wanted)


def test_pruned_track_can_be_forgotten(small: Any) -> None:
    wanted, snapshot = pieces(small, track("a")), small.store.snapshot
    (small.music / "a.wav").unlink()
    small.extract()
    removal.prune(small.store_folder)
    assert track("a") in small.store.at(snapshot).tracks.index
    assert removal.forget(small.store_folder, [track("a")]).chunks == 2
    assert not is_anywhere(small, wanted)
    assert track("a") not in small.store.at(snapshot).tracks.index
    with pytest.raises(UnknownNameError, match="Nothing was forgotten"):
        removal.forget(small.store_folder, [track("a")])


def test_earlier_name_of_a_track_is_not_forgotten_apart(small: Any) -> None:
    (small.music / "a.wav").rename(small.music / "moved.wav")
    small.extract()
    before, snapshot = small.rows(), small.store.snapshot
    assert "'demo/moved.wav'" in failed(small.run("forget", track("a")))
    assert small.rows() == before
    assert small.store.snapshot == snapshot


def test_forgotten_stays_so_until_it_is_allowed(small: Any) -> None:
    removal.forget(small.store_folder, [track("a")])
    assert track("a") not in small.plan()
    replace_song(small, "a", 5)
    assert small.extract().songs == 0
    assert track("a") not in small.store.tracks.index
    assert small.run_json("status")["forgotten"] == 1
    assert "was not forgotten" in failed(small.run("forget", "--allow", track("b")))
    assert small.run_json("forget", "--allow", track("a")) == {"allowed": [track("a")]}
    assert small.plan()[track("a")] == ("extract", "new")
    assert small.extract().songs == 1
    assert small.store["audio"].stored(track("a")).shape[0] == 2
    wanted = pieces(small, track("a"))
    removal.forget(small.store_folder, [track("a")])
    assert not is_anywhere(small, wanted)


def test_a_dry_run_says_what_forgetting_then_does(small: Any) -> None:
    """Under an earlier name and in an earlier version too; a copy stays, and is named."""
    shutil.copy(small.music / "b.wav", small.music / "copy.wav")
    small.extract()
    (small.music / "a.wav").rename(small.music / "moved.wav")
    assert small.extract().moved == 1
    first = small.store.tracks["part"]
    replace_song(small, "moved", 77)
    small.extract()
    last = small.store.tracks["part"]
    before, snapshot = small.rows(), small.store.snapshot
    asked = [track("moved"), track("b")]
    expected = {
        "tracks": [
            {"track_id": track("b"), "other_names": [], "chunks": 2, "parts": [first[track("b")]],
             "copies": [track("copy")]},
            {"track_id": track("moved"), "other_names": [track("a")], "chunks": 4, "copies": [],
             "parts": sorted([first[track("moved")], last[track("moved")]])},
        ],
        "chunks": 6,
        "parts": 2,
    }  # fmt: skip
    assert small.run_json("forget", "--dry-run", *asked) == {**expected, "dry_run": True}
    shown = small.run("forget", "--dry-run", *asked).stdout
    assert "2 tracks would be forgotten: 6 chunks would be erased from 2 parts." in shown
    assert "1 track of the same content" in shown
    assert (small.rows(), small.store.snapshot) == (before, snapshot)
    assert not (small.store_folder / "erased").exists()
    wanted = pieces(small, track("moved"))
    assert small.run_json("forget", *asked) == {**expected, "dry_run": False}
    assert not is_anywhere(small, wanted)
    assert set(small.store.tracks.index) == {track("c"), track("copy"), track("d")}
    assert "erases nothing" in failed(small.run("forget", "--allow", "--dry-run", track("b")))


def test_names_from_a_list(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = small.folder / "list.txt"
    listed.write_bytes("\ufeffdemo/a.wav\r\n\r\ndemo/a.wav\ndemo/x.wav\ndemo/y\x85.wav".encode())
    line = failed(small.run("forget", "--from", "list.txt", track("z"), track("zz")))
    assert "no track 'demo/x.wav', 'demo/y\\x85.wav', 'demo/z.wav' and 1 more." in line
    assert "Nothing was forgotten" in line
    assert not (small.store_folder / "erased").exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"demo/a.wav\ndemo/b.wav")))
    done = small.run_json("forget", "--from", "-", track("c"))
    assert [forgotten["track_id"] for forgotten in done["tracks"]] == [track(name) for name in "abc"]
    assert list(small.store.tracks.index) == [track("d")]
    listed.write_text("demo/b.wav\n")
    assert small.run_json("forget", "--allow", "--from", "list.txt") == {"allowed": [track("b")]}
    listed.write_text("\n")
    assert "name at least one track" in failed(small.run("forget", "--from", "list.txt"))
    assert "No such file" in failed(small.run("forget", "--from", "none.txt"))
    listed.write_bytes(b"caf\xe9\n")
    assert "not valid UTF-8" in failed(small.run("forget", "--from", "list.txt"))


def test_forgotten_content_is_left_alone_under_any_name(small: Any) -> None:
    """Renamed, in another collection, or in the place of another song; until it is allowed."""
    earlier = (small.music / "a.wav").read_bytes()
    replace_song(small, "a", 31)
    small.extract()
    wanted = pieces(small, track("a"))
    removal.forget(small.store_folder, [track("a")])
    (small.music / "a.wav").rename(small.music / "renamed.wav")
    (small.music / "earlier.wav").write_bytes(earlier)
    (small.folder / "more").mkdir()
    shutil.copy(small.music / "renamed.wav", small.folder / "more" / "x.wav")
    shutil.copy(small.music / "renamed.wav", small.music / "c.wav")
    small.catalog.write_text(
        small.catalog.read_text().replace("{path: ./music}", "{path: ./music}\n  more: {path: ./more}")
    )
    kept = {key: rows for key, rows in small.rows().items() if key[0] == track("c")}
    report = small.extract()
    assert (report.songs, report.failures) == (0, 4)
    assert not is_anywhere(small, wanted)
    copies = [track("c"), track("earlier"), track("renamed"), "more/x.wav"]
    failures = small.store.failures
    assert list(failures.index) == copies
    assert set(failures["stage"]) == {"forgotten"}
    assert failures["reason"].str.contains("mirstore forget --allow").all()
    assert {key: rows for key, rows in small.rows().items() if key[0] == track("c")} == kept
    skipped = ("skip", "the content of a forgotten track")
    assert small.plan() == small.plan(retry_failed=True) == dict.fromkeys(copies, skipped)
    assert verify(small.store_folder).is_sound
    # By the name of one of the copies: all of that content, and no other, are taken.
    snapshot = small.store.snapshot
    assert small.extract().failures == 0
    assert small.store.snapshot == snapshot, "nothing to do"
    assert small.run_json("forget", "--allow", track("c")) == {"allowed": [track("c")]}
    assert small.plan().pop(track("earlier")) == skipped
    assert small.extract().songs == 3
    assert small.plan() == {track("earlier"): skipped}
    # By the name of what was forgotten.
    removal.allow(small.store_folder, [track("a")])
    assert small.extract().songs == 1
    assert len(small.store.failures) == 0


def test_content_is_known_when_the_tables_that_knew_it_are_gone(small: Any) -> None:
    earlier = (small.music / "a.wav").read_bytes()
    replace_song(small, "a", 31)
    small.extract()
    collect_garbage(small.store_folder, grace_s=0.0, keep_s=0.0)
    removal.forget(small.store_folder, [track("a")])
    (small.music / "b2.wav").write_bytes(earlier)
    assert small.extract().failures == 1
    assert small.store.failures["stage"].to_dict() == {track("b2"): "forgotten"}
    digest = hashlib.sha256(earlier).hexdigest()
    parts = [path.read_text() for path in small.store_folder.glob("parts/*/zarr.json")]
    assert parts
    assert not any(digest in text for text in parts)


def test_a_copy_that_stays_can_be_moved_but_is_not_decoded_again(small: Any) -> None:
    shutil.copy(small.music / "a.wav", small.music / "copy.wav")
    small.extract()
    removal.forget(small.store_folder, [track("a")])
    (small.music / "copy.wav").rename(small.music / "other.wav")
    assert small.extract().moved == 1
    rows = small.rows()
    small.write_catalog("audio: {kind: audio, dtype: float32}", LOGMEL)
    report = small.extract()
    assert (report.songs, report.failures) == (3, 1)
    assert list(small.store.failures.index) == [track("other")]
    assert {key: small.rows()[key] for key in rows if key[0] == track("other")} == {
        key: found for key, found in rows.items() if key[0] == track("other")
    }


def test_erasures_of_earlier_versions_block_by_name(small: Any) -> None:
    removal.forget(small.store_folder, [track("a")])
    [file] = (small.store_folder / "erased").iterdir()
    content = json.loads(file.read_text())
    assert list(content["contents"].values()) == [
        [hashlib.sha256((small.music / "a.wav").read_bytes()).hexdigest()]
    ]
    del content["contents"]
    file.write_text(json.dumps(content))
    (small.music / "a.wav").rename(small.music / "renamed.wav")
    assert small.plan()[track("renamed")] == ("extract", "new")
    (small.music / "renamed.wav").rename(small.music / "a.wav")
    assert track("a") not in small.plan()
    removal.allow(small.store_folder, [track("a")])
    assert small.plan()[track("a")] == ("extract", "new")


# Erasures


def erasure(number: int, **how: Any) -> Erasure:
    name = f"{number:064x}"
    return Erasure(
        f"erased/{number:032x}.json", (Span(f"p{number % 3}", number, 1),), (name,), {name: (f"c{number}",)},
        **{"done": True, **how},
    )  # fmt: skip


def known_of(location: Folder) -> tuple[set[tuple[str, int]], set[str], set[str]]:
    return erased_spans(location), blocked_hashes(location), blocked_contents(location)


def test_done_erasures_become_one_file(small: Any) -> None:
    location = Folder(small.store_folder)
    for number in range(DONE_FILES_KEPT):
        erasure(number).write(location)
    collect_garbage(location)
    assert len(location.names("erased")) == DONE_FILES_KEPT
    removal.forget(location, [track("a")])
    assert len(location.names("erased")) == 1
    spans, names, contents = known_of(location)
    assert {(f"p{number % 3}", number) for number in range(DONE_FILES_KEPT)} < spans
    assert {f"{number:064x}" for number in range(DONE_FILES_KEPT)} | {name_hash(track("a"))} == names
    assert {f"c{number}" for number in range(DONE_FILES_KEPT)} < contents
    removal.allow(location, [track("a")])
    assert blocked_hashes(location) == names - {name_hash(track("a"))}
    assert erased_spans(location) == spans
    removal.forget(location, [track("b")])
    assert len(location.names("erased")) == 2


@pytest.mark.parametrize("steps", range(5))
def test_a_kill_while_erasures_are_merged_loses_none(small: Any, steps: int) -> None:
    """After each write and each delete of it."""
    location = Folder(small.store_folder)
    for number in range(DONE_FILES_KEPT + 1):
        erasure(number).write(location)
    before = known_of(location)
    left = itertools.count(-steps)

    class Killed(BaseException):
        pass

    class Mortal(Folder):
        def write(self, key: str, content: bytes) -> None:
            if next(left) >= 0:
                raise Killed
            super().write(key, content)

        def delete(self, prefix: str) -> None:
            if next(left) >= 0:
                raise Killed
            super().delete(prefix)

    with pytest.raises(Killed), writable_index(Mortal(small.store_folder), "test"):
        pass
    assert known_of(location) == before
    assert (len(location.names("erased")) == DONE_FILES_KEPT + 1) == (steps in (0, 2))
    collect_garbage(location)
    assert known_of(location) == before
    assert len(location.names("erased")) <= DONE_FILES_KEPT


def test_erasures_that_are_merged_while_they_are_read(small: Any) -> None:
    location = Folder(small.store_folder)
    for number in range(DONE_FILES_KEPT + 1):
        erasure(number).write(location)
    before = known_of(location)

    class Slow(Folder):
        """Merged between the listing and the first read."""

        merged = False

        def read(self, key: str) -> bytes:
            if not self.merged:
                self.merged = True
                collect_garbage(location)
            return super().read(key)

    assert erased_spans(Slow(small.store_folder)) == before[0]
    assert len(location.names("erased")) == 1


def test_an_erasure_that_is_not_done_is_not_merged(small: Any) -> None:
    """One whose shard is damaged."""
    location = Folder(small.store_folder)
    part = small.store.tracks.loc[track("a"), "part"]
    [shard] = (small.store_folder / "parts" / part).glob("audio@*/c/0/0")
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    assert "index of shard 0" in failed(small.run("forget", track("a")))
    for number in range(DONE_FILES_KEPT + 1):
        erasure(number).write(location)
    collect_garbage(location)
    assert [found.track_ids for found in erasures(location) if not found.done] == [(track("a"),)]
    assert len(location.names("erased")) == 2
    content[-20] ^= 1
    shard.write_bytes(content)
    collect_garbage(location)
    assert all(found.done for found in erasures(location))


def test_forgotten_track_without_a_file_is_no_failure(small: Any) -> None:
    """A manifest may name it still."""
    (small.folder / "songs.csv").write_text("uri\n" + "".join(f"music/{name}.wav\n" for name in NAMES))
    small.catalog.write_text(small.catalog.read_text().replace("path: ./music", "manifest: songs.csv"))
    small.extract()
    [name] = [name for name in small.store.tracks.index if name.endswith("a.wav")]
    removal.forget(small.store_folder, [name])
    (small.music / "a.wav").unlink()
    small.extract()
    assert name not in set(Index(small.store_folder).tracks()["track_id"])
    assert small.run_json("failures")["failed"] == []


def test_forgotten_name_is_in_no_file_after_gc(small: Any, scheduler: str) -> None:
    """Not in the tables, not in their log, which is kept for ever."""
    small.add_song("zz-precious.wav", seconds=1.0)
    small.extract()
    removal.forget(small.store_folder, [track("zz-precious")])
    collect_garbage(small.store_folder, grace_s=0, keep_s=0)
    holding = [
        str(path.relative_to(small.store_folder))
        for path in small.store_folder.rglob("*")
        if path.is_file() and b"zz-precious" in path.read_bytes()
    ]
    assert holding == []


def test_a_part_that_gc_half_deleted_does_not_stop_forgetting(small: Any) -> None:
    replace_song(small, "a", 1)
    small.extract()
    replace_song(small, "a", 2)
    small.extract()
    first = small.store.tracks.loc[track("a"), "part"]
    replace_song(small, "a", 3)
    small.extract()
    # As if gc had been killed while deleting the part: the tables of the past still name it.
    [shard] = (small.store_folder / "parts" / first).glob("audio@*/c/0/0")
    shard.unlink()
    removal.forget(small.store_folder, [track("a")])
    small.add_song("new.wav")
    assert small.extract().songs == 1


def test_a_damaged_shard_does_not_stop_all_that_writes(small: Any) -> None:
    """It stops forgetting what lies in it, which is hidden all the same and erased once the shard is mended."""
    replace_song(small, "x", 20)
    small.extract()
    wanted = pieces(small, track("a")) | pieces(small, track("x"))
    part = small.store.tracks.loc[track("a"), "part"]
    [shard] = (small.store_folder / "parts" / part).glob("audio@*/c/0/0")
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    assert "index of shard 0" in failed(small.run("forget", track("a"), track("x")))
    assert set(small.store.tracks.index) == {track(name) for name in "bcd"}
    small.add_song("new.wav")
    assert small.extract().songs == 1
    assert small.run("gc").returncode == 0
    content[-20] ^= 1
    shard.write_bytes(content)
    assert small.run("gc").returncode == 0
    assert not is_anywhere(small, wanted)
    assert verify(small.store_folder).is_sound


def test_compute_after_forgetting_skips_the_erased_rows(small: Any) -> None:
    removal.forget(small.store_folder, [track("b")])
    small.write_catalog(AUDIO, FINE)
    report = small.extract()
    assert report.computed == len(NAMES) - 1
    assert verify(small.store_folder).is_sound
    assert set(small.store["logmel"].tracks.index) == {track(name) for name in "acd"}


def test_store_of_which_all_was_forgotten(small: Any) -> None:
    removal.forget(small.store_folder, [track(name) for name in NAMES])
    assert verify(small.store_folder).is_sound
    assert small.run_json("status")["tracks"] == 0
    assert small.run_json("prune")["tracks"] == []
    assert small.run_json("compact")["emptied"] == 1
    small.run_json("gc", "--grace", "0", "--keep", "0")
    assert verify(small.store_folder).is_sound
    assert small.extract().songs == 0
    assert list((small.store_folder / "parts").iterdir()) == []


# Drop


def test_drop(small: Any) -> None:
    old = small.store["logmel"].fingerprint
    small.write_catalog(AUDIO, FINE)
    small.extract()
    before, snapshot = small.rows(), small.store.snapshot
    new = small.store["logmel"].fingerprint
    assert "--force" in failed(small.run("drop", f"logmel@{new}"))
    line = failed(small.run("drop", "logmel"))
    assert f"logmel@{old}" in line
    assert f"logmel@{new}" in line
    failed(small.run("drop", "melody@000000000000"))
    assert small.rows() == before
    done = small.run_json("drop", f"logmel@{old}")
    assert (done["feature"], done["fingerprint"]) == ("logmel", old)
    assert done["bytes"] > 0
    assert small.rows() == {key: rows for key, rows in before.items() if key[1] != f"logmel@{old}"}
    assert small.store.at(snapshot)[f"logmel@{old}"].stored(track("a")).shape == (2, 8, 64)
    assert verify(small.store_folder).is_sound
    small.run_json("drop", f"logmel@{new}", "--force")
    assert small.extract().computed == len(NAMES)
    assert {key: small.rows()[key] for key in before if key[1] == f"logmel@{new}"} == {
        key: rows for key, rows in before.items() if key[1] == f"logmel@{new}"
    }
    left = {
        one["name"].split("@")[0] for one in small.run_json("gc", "--grace", "0", "--keep", "0")["unneeded"]
    }
    part = small.store.tracks["part"].iloc[0]
    assert left == {f"{part}/logmel"}
    assert verify(small.store_folder).is_sound


def test_gc_after_drop_leaves_nothing_to_recover(small: Any) -> None:
    """Only one of the two tables has old files then; the commits still belong together."""
    small.write_catalog(AUDIO, FINE)
    small.extract()
    removal.drop(small.store_folder, f"logmel@{small.store['logmel'].fingerprint}")
    collect_garbage(small.store_folder, grace_s=0, keep_s=0)
    with writable_index(small.store_folder, "test"):
        pass
    assert "recovery" not in set(small.store.snapshots["command"])


def test_gc_without_garbage_commits_nothing(small: Any) -> None:
    replace_song(small, "a", 50)
    small.extract()
    collect_garbage(small.store_folder, grace_s=0, keep_s=0)
    snapshot = small.store.snapshot
    collect_garbage(small.store_folder, grace_s=0, keep_s=0)
    assert small.store.snapshot == snapshot


# Compact


def computed_with(store: Any) -> dict[tuple[str, str], str]:
    """How each track's features were computed."""
    arrays = store.arrays.merge(store.tracks.reset_index()[["track_id", "part"]], on="part")
    keys = zip(arrays["track_id"], arrays["fingerprint"], strict=True)
    return dict(zip(keys, arrays["computed_with"], strict=True))


def test_compact_merges_small_parts_and_leaves_dead_rows_behind(small: Any) -> None:
    for seed, name in enumerate(["x", "y"]):
        replace_song(small, name, 100 + seed)
        small.extract()
    replace_song(small, "a", 200)
    small.extract()
    before, how, snapshot = small.rows(), computed_with(small.store), small.store.snapshot
    assert small.store.tracks["part"].nunique() == 4
    planned = small.run_json("compact", "--dry-run")
    assert small.store.snapshot == snapshot
    done = small.run_json("compact")
    assert (planned.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert {**done, "freed_bytes": 0} == {**planned, "freed_bytes": 0}
    assert (done["rewritten"], done["made"], done["emptied"]) == (4, 1, 0)
    assert (done["rows"], done["dead_rows"]) == (12, 2)
    store = small.store
    assert small.rows() == before
    assert computed_with(store) == how
    [part] = set(store.tracks["part"])
    described = json.loads((small.store_folder / "parts" / part / "zarr.json").read_text())
    assert {entry["track_id"] for entry in described["attributes"]["tracks"]} == set(store.tracks.index)
    assert verify(small.store_folder).is_sound
    assert small.run("compact").stdout.strip() == "Nothing to compact."
    assert small.store.snapshot == store.snapshot
    assert {key: rows for key, rows in before.items()} == {
        (name, version): store.at(snapshot)[version].stored(name).tobytes() for name, version in before
    }
    removed = [
        one for one in small.run_json("gc", "--grace", "0", "--keep", "0")["unneeded"] if one["removed"]
    ]
    assert len(removed) == 4
    assert sum(one["bytes"] for one in removed) >= done["freed_bytes"] > 0
    assert small.rows() == before


def test_parts_of_different_features_are_not_merged(small: Any) -> None:
    (small.music / "a.wav").rename(small.folder / "a.wav")
    small.extract()
    removal.prune(small.store_folder)
    small.write_catalog(AUDIO, FINE, "mfcc: {kind: mfcc, from: logmel, n_mfcc: 4}")
    (small.folder / "a.wav").rename(small.music / "a.wav")
    small.extract()
    before = small.rows()
    assert small.store.tracks["part"].nunique() == 2
    report = compact(small.store_folder)
    assert report.rewritten == 0  # 6 of 8 rows of one are live, and their versions differ
    assert small.rows() == before
    assert compact(small.store_folder, least_live=0.9).rewritten == 1
    assert small.rows() == before


def test_parts_without_live_rows_are_dropped(small: Any) -> None:
    for name in NAMES:
        (small.music / f"{name}.wav").unlink()
    replace_song(small, "x", 5)
    small.extract()
    removal.prune(small.store_folder, collection="demo")
    before = small.rows()
    report = compact(small.store_folder)
    assert (report.rewritten, report.emptied, report.dead_rows) == (0, 1, 8)
    assert small.store.arrays["part"].nunique() == 1
    assert small.rows() == before


def test_damaged_part_is_told_and_left(small: Any) -> None:
    damaged = small.store.tracks["part"].iloc[0]
    (small.music / "a.wav").unlink()
    (small.music / "b.wav").unlink()
    small.extract()
    removal.prune(small.store_folder)
    [shard] = (small.store_folder / "parts" / damaged).glob("logmel@*/c/0/0/0")
    content = bytearray(shard.read_bytes())
    for position in range(0, len(content) - 16 * 256 - 4, 40):
        content[position] ^= 1
    shard.write_bytes(content)
    snapshot = small.store.snapshot
    parts = {path.name for path in (small.store_folder / "parts").iterdir()}
    done = small.run("compact", "--json")
    assert damaged in failed(done, code=1)
    assert json.loads(done.stdout)["rewritten"] == 0
    assert len(json.loads(done.stdout)["damage"]) == 1
    assert small.store.snapshot == snapshot
    assert {path.name for path in (small.store_folder / "parts").iterdir()} == parts
    assert small.store["audio"].stored(track("c")).shape[0] == 2


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([10, 60, 64, 200, 257, 400]), st.sampled_from([0.05, 0.5, 0.65, 1.0])),
        max_size=12,
    )
)
def test_second_compaction_finds_nothing(sizes: list[tuple[int, float]]) -> None:
    rows = [count for count, _ in sizes]
    live = [max(1, math.floor(count * share)) for count, share in sizes]
    parts = pd.DataFrame(
        {"rows": rows, "live": live, "kind": "k"}, index=[f"p{number:02}" for number in range(len(rows))]
    )
    groups = groups_to_merge(parts, least_live=0.7, small_rows=64)
    merged = [part for group in groups for part in group]
    assert len(set(merged)) == len(merged)
    assert all(len(group) == 1 or parts.loc[group, "live"].sum() <= TARGET_ROWS for group in groups)
    made = [int(parts.loc[group, "live"].sum()) for group in groups]
    after = pd.concat(
        [
            parts.drop(index=merged),
            pd.DataFrame(
                {"rows": made, "live": made, "kind": "k"}, index=[f"n{n}" for n in range(len(made))]
            ),
        ]
    ).astype({"rows": "int64", "live": "int64"})
    assert groups_to_merge(after, least_live=0.7, small_rows=64) == []


# Garbage


def test_gc_keeps_what_recent_snapshots_name(small: Any) -> None:
    before, first = small.rows(), small.store.snapshot
    replace_song(small, "a", 300)
    small.extract()
    replace_song(small, "b", 301)
    small.extract()
    compact(small.store_folder)
    now, newest = small.rows(), small.store.snapshot
    assert small.run_json("gc", "--grace", "0") == {"unneeded": [], "dry_run": False}
    assert "Nothing to remove." in small.run("gc", "--grace", "0").stdout
    for number in range(first, newest + 1):
        small.store.at(number)
    past = small.store.at(first)
    assert {(name, version): past[version].stored(name).tobytes() for name, version in before} == before
    listed = small.run_json("gc", "--grace", "0", "--keep", "0", "--dry-run")["unneeded"]
    assert len(listed) == 3
    assert not any(one["removed"] for one in listed)
    kept = small.run_json("gc", "--keep", "0")["unneeded"]  # within the hour of grace
    assert [one["removed"] for one in kept] == [False] * 3
    removed = small.run_json("gc", "--grace", "0", "--keep", "0")["unneeded"]
    assert [one["removed"] for one in removed] == [True] * 3
    assert small.rows() == now
    assert {path.name for path in (small.store_folder / "parts").iterdir()} == set(small.store.arrays["part"])
    for number in range(newest):
        with pytest.raises(
            StoreError, match=r"can no longer be read: `mirstore gc` has kept those from \d+ on"
        ):
            small.store.at(number)
    snapshots = small.store.snapshots["snapshot"]
    assert snapshots.min() >= newest
    for number in snapshots:
        assert len(small.store.at(number).tracks) == len(NAMES)
    files = {path.name for path in (small.store_folder / "tracks").glob("*.parquet")}
    current = {Path(uri).name for uri in Index(small.store_folder)._tracks.file_uris()}
    assert files == current
    assert verify(small.store_folder).is_sound


def test_gc_removes_drafts_that_kills_left(small: Any) -> None:
    part = small.store.tracks["part"].iloc[0]
    [shard] = (small.store_folder / "parts" / part).glob("audio@*/c/0/0")
    drafts = [
        shard.with_name(f".{shard.name}.4711"),
        small.store_folder / "parts" / part / ".zarr.json.4711",
        small.store_folder / ".mirstore.json.4711",
        small.store_folder / "erased" / ".x.json.4711",
    ]
    (small.store_folder / "erased").mkdir()
    for draft in drafts:
        draft.write_bytes(shard.read_bytes())
    before = small.rows()
    collect_garbage(small.store_folder, grace_s=0)
    assert [draft for draft in drafts if draft.exists()] == []
    assert small.rows() == before


def test_forgetting_leaves_no_drafts_of_killed_commands(small: Any) -> None:
    wanted = pieces(small, track("b"))
    part = small.store.tracks["part"].iloc[0]
    [shard] = (small.store_folder / "parts" / part).glob("audio@*/c/0/0")
    shard.with_name(f".{shard.name}.4711").write_bytes(shard.read_bytes())
    removal.forget(small.store_folder, [track("b")])
    assert not is_anywhere(small, wanted)


# Verify


Damage = Callable[[Path, SimpleNamespace], None]


def flipped(pattern: str, position: int) -> Damage:
    def damage(part: Path, _: SimpleNamespace) -> None:
        [path] = part.glob(pattern)
        content = bytearray(path.read_bytes())
        content[position] ^= 4
        path.write_bytes(content)

    return damage


def rewritten(pattern: str, change: Callable[[Any], Any]) -> Damage:
    def damage(part: Path, _: SimpleNamespace) -> None:
        [path] = part.glob(pattern)
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def removed(pattern: str) -> Damage:
    def damage(part: Path, _: SimpleNamespace) -> None:
        [path] = part.glob(pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def truncated(part: Path, _: SimpleNamespace) -> None:
    [path] = part.glob("audio@*/c/0/0")
    path.write_bytes(path.read_bytes()[:-5])


def retracked(**changes: Any) -> Damage:
    """Another row of track b in the index."""

    def damage(_: Path, store: SimpleNamespace) -> None:
        with writable_index(store.folder, "test") as index:
            rows = index.tracks()
            [row] = track_rows(rows[rows["track_id"] == track("b")])
            index.commit(updated=[replace(row, **changes)], provenance={})

    return damage


def duplicated(_: Path, store: SimpleNamespace) -> None:
    with writable_index(store.folder, "test") as index:
        rows = index.tracks()
        [row] = track_rows(rows[rows["track_id"] == track("b")])
        index.commit(added=[row], provenance={})


def array_twice(_: Path, store: SimpleNamespace) -> None:
    with writable_index(store.folder, "test") as index:
        row = ArrayRow(**index.arrays().to_dict(orient="records")[0])
        index.commit(arrays=[row], provenance={})


def erased_row(part: Path, store: SimpleNamespace) -> None:
    [array] = part.glob("audio@*")
    blank_rows(Folder(store.folder), part.name, array.name, [3])


def valid_frames_changed(part: Path, _: SimpleNamespace) -> None:
    zarr.open_array(part / "valid_frames", mode="r+")[1] = 7


def first_shape(metadata: dict[str, Any]) -> dict[str, Any]:
    return {**metadata, "shape": [metadata["shape"][0] - 1, *metadata["shape"][1:]]}


DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "byte of a row": (flipped("audio@*/c/0/0", 300), "audio", "row 0 is damaged"),
    "byte of a late row": (flipped("logmel@*/c/0/0/0", -16 * 256 - 10), "logmel", "row 7 is damaged"),
    "byte of a shard's index": (flipped("audio@*/c/0/0", -20), "audio", "index of shard 0 is damaged"),
    "shard cut short": (truncated, "audio", "index of shard 0 is damaged"),
    "no shard": (removed("audio@*/c/0/0"), "audio", "shard 0 is missing"),
    "no array": (removed("audio@*"), "audio", "cannot be opened"),
    "other row count": (rewritten("logmel@*/zarr.json", first_shape), "logmel", "the index says 8 x 8 x 64"),
    "row not there": (erased_row, "audio", "row 3 of a track is not there"),
    "no group": (removed("zarr.json"), "", "cannot be opened"),
    "no attributes": (rewritten("zarr.json", lambda group: {"zarr_format": 3}), "", "cannot be"),
    "null attributes": (rewritten("zarr.json", lambda group: {**group, "attributes": None}), "", "cannot be"),
    "no tracks": (rewritten("zarr.json", lambda group: {**group, "attributes": {}}), "", "cannot be"),
    "odd tracks": (
        rewritten("zarr.json", lambda group: {**group, "attributes": {"tracks": [3]}}),
        "",
        "cannot be",
    ),
    "unknown rows": (
        rewritten("zarr.json", lambda group: {**group, "attributes": {"tracks": []}}),
        "",
        "the part does not know rows",
    ),
    "valid frames": (valid_frames_changed, "", "valid_frames of demo/"),
    "no valid frames": (removed("valid_frames"), "", "coordinates cannot be read"),
    "no start_s": (removed("start_s"), "", "coordinates cannot be read"),
    "overlapping tracks": (retracked(row_start=1), "", "another track's too"),
    "past the end": (retracked(row_start=7), "", "past the end"),
    "no such part": (retracked(part="nowhere"), "", "the index has no array of it"),
    "length": (retracked(n_samples=99_000), "", "another number of chunks"),
    "duplicated track": (duplicated, "", "demo/b.wav is in the index twice"),
    "array twice": (array_twice, "", "twice"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_the_damage(small: Any, name: str) -> None:
    damage, feature, words = DAMAGES[name]
    part = small.store.tracks["part"].iloc[0]
    assert small.run_json("verify")["problems"] == []
    snapshot = small.store.snapshot
    damage(small.store_folder / "parts" / part, SimpleNamespace(folder=small.store_folder))
    done = small.run("verify", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    problems = json.loads(done.stdout)["problems"]
    [problem] = [problem for problem in problems if words in problem["problem"]]
    if feature:
        assert problem["array"].startswith(f"{feature}@")
        assert problem["tracks"] == len(problem["track_ids"]) > 0
        assert set(problem["track_ids"]) <= set(small.store.tracks.index)
    if "in the index twice" not in words and name != "no such part":
        assert problem["part"] == part
    table = small.run("verify")
    assert table.returncode == 1
    assert words.split()[0] in table.stdout
    assert re.search(r"\d problems?\.", table.stdout)
    assert small.store.snapshot >= snapshot


def test_verify_of_a_sound_store(small: Any) -> None:
    snapshot = small.store.snapshot
    done = small.run("verify")
    assert done.returncode == 0
    assert "4 tracks, 1 part, 2 arrays, 16 rows" in done.stdout
    assert "nothing is wrong" in done.stdout
    replace_song(small, "x", 9)
    small.extract()
    assert small.run_json("verify")["tracks"] == 5
    assert small.run_json("verify", "--snapshot", str(snapshot))["tracks"] == 4
    assert "no snapshot 99" in failed(small.run("verify", "--snapshot", "99"))


def test_verify_counts_as_status_does(small: Any) -> None:
    """Of tracks that failed, with and without features, that have gone, and that were forgotten."""
    (small.music / "broken.wav").write_bytes(b"no audio at all")
    (small.music / "a.wav").write_bytes(b"no audio any more")
    (small.music / "b.wav").unlink()
    small.extract()
    removal.forget(small.store_folder, [track("c")])
    status, report = small.run_json("status"), small.run_json("verify")
    assert (status["tracks"], status["failed"], status["gone"]) == (3, 2, 1)
    assert {key: report[key] for key in ("tracks", "parts", "bytes")} == {
        key: status[key] for key in ("tracks", "parts", "bytes")
    }
    [line] = small.run("verify").stdout.splitlines()
    assert line.startswith("3 tracks, 1 part, 2 arrays, ")
    assert small.run("status").stdout.splitlines()[1].startswith("3 tracks, ")


# Readers


@pytest.fixture
def reader(small: Any) -> tuple[FeatureStore, dict[tuple[str, str], bytes]]:
    """A store that was opened and read before what a test does to it, and its rows."""
    store = small.store
    before = {}
    for feature in ("audio", "logmel"):
        for name in store.tracks.index:
            before[name, feature] = store[feature].stored(name).tobytes()
    return store, before


def test_open_reader_is_not_disturbed(small: Any, reader: Any) -> None:
    store, before = reader
    (small.music / "a.wav").unlink()
    (small.music / "b.wav").unlink()
    small.extract()
    removal.prune(small.store_folder)
    assert compact(small.store_folder).rewritten == 1
    collect_garbage(small.store_folder, grace_s=0)
    fresh = FeatureStore(small.store_folder, snapshot=store.snapshot)
    for (name, feature), rows in before.items():
        assert store[feature].stored(name).tobytes() == rows
        assert fresh[feature].stored(name).tobytes() == rows


def test_open_reader_is_told_of_what_was_forgotten(small: Any, reader: Any) -> None:
    store, before = reader
    removal.forget(small.store_folder, [track("b")])
    for (name, feature), rows in before.items():
        if name == track("b"):
            with pytest.raises(StoreError, match=r"was erased \(`mirstore forget`\)") as caught:
                store[feature].stored(name)
            assert not isinstance(caught.value, StoreDamagedError)
        else:
            assert store[feature].stored(name).tobytes() == rows
    fresh = FeatureStore(small.store_folder, snapshot=store.snapshot)
    with pytest.raises(UnknownNameError):
        fresh["audio"].stored(track("b"))


def test_rows_erased_while_they_are_read(small: Any) -> None:
    """Between a reader's look at the shard's index and its look at the rows."""
    store = small.store
    row = store.tracks.loc[track("b")]
    array = store["audio"].rows.arrays[row["part"]]
    rows = [int(row["row_start"]), int(row["row_start"]) + 1]

    class Slow(Folder):
        def read_range(self, key: str, start: int, length: int) -> bytes:
            if rows:
                blank_rows(Folder(self.path), row["part"], array, rows)
                rows.clear()
            return super().read_range(key, start, length)

    reader = ShardReader(Slow(small.store_folder), row["part"], array)
    with pytest.raises(StoreError, match="was erased") as caught:
        reader.rows(int(row["row_start"]), int(row["row_start"]) + 2)
    assert not isinstance(caught.value, StoreDamagedError)


def test_no_command_without_a_store(empty_project: Any) -> None:
    for arguments in (
        ("prune",),
        ("forget", "demo/a.wav"),
        ("forget", "--allow", "demo/a.wav"),
        ("drop", "audio@0"),
        ("compact",),
        ("verify",),
        ("gc",),
    ):
        assert "holds no store" in failed(empty_project.run(*arguments))
        assert not empty_project.store_folder.exists()
    assert os.listdir(empty_project.music) == []


def test_a_version_that_models_use_is_not_dropped_by_accident(empty_project: Any) -> None:
    empty_project.add_song("a.wav")
    empty_project.extract()
    version = f"mfcc@{empty_project.store['mfcc'].fingerprint}"
    empty_project.write_catalog(AUDIO, LOGMEL)
    card = empty_project.store_folder / "models" / "codebook" / "1" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"features": [version]}))
    done = empty_project.run("drop", version)
    assert done.returncode == 2
    assert "codebook/1" in done.stderr
    assert list(empty_project.store) == ["audio", "logmel", "mfcc"]
    assert empty_project.run("drop", version, "--force").returncode == 0
    assert list(empty_project.store) == ["audio", "logmel"]


def test_the_only_version_that_tracks_have_is_not_dropped(empty_project: Any) -> None:
    empty_project.write_catalog(AUDIO)
    empty_project.add_song("a.wav")
    empty_project.extract()
    done = empty_project.run("drop", f"audio@{empty_project.store['audio'].fingerprint}", "--force")
    assert done.returncode == 2
    assert "all that one track has" in done.stderr
    assert verify(empty_project.store_folder).is_sound


def test_verify_names_the_tracks_of_damaged_rows(empty_project: Any) -> None:
    for number in range(3):
        empty_project.add_song(f"{number}.wav", seconds=4.0, seed=number)
    empty_project.extract()
    store = empty_project.store
    part, first, count, _ = store["audio"]._span("demo/1.wav")
    reader = ShardReader(store.location, part, store["audio"].rows.arrays[part])
    [shard] = empty_project.store_folder.glob("parts/*/audio@*/c/0/0")
    content = bytearray(shard.read_bytes())
    for row in (first, first + count - 1):
        [encoded] = reader.encoded(row, row + 1)
        content[content.index(encoded) + 30] ^= 1
    shard.write_bytes(content)
    [problem] = json.loads(empty_project.run("verify", "--json").stdout)["problems"]
    assert problem["track_ids"] == ["demo/1.wav"]
    assert "2 such rows" in problem["problem"]
    assert "demo/1.wav" in empty_project.run("verify").stdout


def test_dry_run_of_gc_says_what_would_go(empty_project: Any) -> None:
    empty_project.add_song("a.wav")
    empty_project.extract()
    (empty_project.store_folder / "parts" / "left").mkdir()
    (empty_project.store_folder / "parts" / "left" / "x").write_bytes(bytes(1500))
    told = empty_project.run("gc", "--dry-run", "--grace", "0").stdout
    assert "1 would be removed, 1.5 kB freed." in told
    [one] = empty_project.run_json("gc", "--dry-run", "--grace", "0")["unneeded"]
    assert (one["due"], one["removed"]) == (True, False)
    assert (empty_project.store_folder / "parts" / "left").exists()


def test_parts_of_a_past_snapshot_are_not_called_unnamed(new_store: Callable[..., FeatureStore]) -> None:
    store = new_store([[3], [2], [4]])
    compact(str(store.location))
    newest = FeatureStore(str(store.location))
    assert summary(newest)["orphan_parts"] == 3
    assert summary(newest.at(store.snapshot))["orphan_parts"] == 0
