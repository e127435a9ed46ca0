"""Mishaps that must cost no more than they have to."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CatalogError, StoreDamagedError, StoreError, StoreLockedError
from pipeline.store.folder import Folder
from pipeline.store.location import FORMAT_FILE

AUDIO = "audio: {kind: audio, sample_rate: 12000, dtype: int16}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_fft: 512, n_mels: 32}"


def damage(store: Path, part: str, array: str) -> None:
    """Flip a byte in the first row of an array's first shard."""
    shard = next(path for path in (store / "parts" / part).glob(f"{array}@*/c/0/**/*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)


def test_a_damaged_part_keeps_nothing_else_from_being_done(project: Any) -> None:
    project.write_catalog(AUDIO)
    project.extract()
    parts = sorted(project.store.tracks["part"].unique())
    assert len(parts) > 1
    damage(project.store_folder, parts[0], "audio")
    project.write_catalog(AUDIO, LOGMEL)
    project.add_song("another.wav", seconds=3.0, seed=77)

    with pytest.raises(
        StoreDamagedError, match=rf"part {parts[0]}, array audio@.*checksum.*\nEverything else is done"
    ):
        project.extract()

    store = project.store
    assert "demo/another.wav" in store.tracks.index
    has = set(store["logmel"].tracks.index)
    assert has == set(store.tracks.index[store.tracks["part"] != parts[0]])
    for track_id in has:
        assert len(store["logmel"].stored(track_id))
    done = project.run("extract", shared=True)
    assert done.returncode == 2
    assert parts[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lost_format_file_is_not_made_up(project: Any) -> None:
    project.extract()
    before = project.rows()
    content = (project.store_folder / FORMAT_FILE).read_bytes()
    (project.store_folder / FORMAT_FILE).unlink()
    with pytest.raises(StoreDamagedError, match=FORMAT_FILE):
        project.extract()
    (project.store_folder / FORMAT_FILE).write_bytes(content)
    assert project.rows() == before


def test_a_folder_of_something_else_is_not_filled(project: Any) -> None:
    project.store_folder.mkdir()
    (project.store_folder / "thesis.doc").write_text("important")
    with pytest.raises(StoreError, match=r"thesis\.doc"):
        project.extract()
    assert not (project.store_folder / "parts").exists()


def test_a_wrong_folder_makes_no_store(project: Any) -> None:
    shutil.rmtree(project.music)
    with pytest.raises(CatalogError, match="music"):
        project.extract()
    assert not project.store_folder.exists()


def test_a_store_that_is_being_written_names_its_writer(project: Any) -> None:
    with (
        Folder(project.store_folder).lock("mirstore extract"),
        pytest.raises(StoreLockedError, match=rf"`mirstore extract` \(process {os.getpid()} on "),
    ):
        project.extract()


def test_songs_gone_from_an_unmounted_disk_keep_their_features(project: Any) -> None:
    """An empty folder where music was: everything is marked, nothing is lost, and all of it comes back."""
    project.extract()
    before = project.rows()
    project.music.rename(project.folder / "elsewhere")
    project.music.mkdir()
    n_tracks = len({track for track, _ in before})
    dry = project.run("extract", "--dry-run")
    plans = {reason for _, reason in project.plan().values()}
    assert plans == {"the file is gone, like all of demo"}
    assert "mark gone  the file is gone, like all of demo" in dry.stdout
    first = project.run("extract", "--json")
    report = json.loads(first.stdout)
    assert (report["gone"], report["emptied"]) == (n_tracks, {"demo": n_tracks})
    again = project.run("extract")
    assert again.stdout.startswith("Nothing to do")
    for told in (dry, first, again):
        assert told.returncode == 0
        [line] = told.stderr.splitlines()
        assert line.startswith(
            f"mirstore: nothing was found any more in the collection demo: {n_tracks} tracks"
        )
        assert "`mirstore prune --collection demo`" in line
    assert "until such a collection is named" in project.run("prune").stderr
    assert project.rows() == before
    project.music.rmdir()
    (project.folder / "elsewhere").rename(project.music)
    report = project.extract()
    assert (report.songs, report.back, report.updated, report.emptied) == (0, n_tracks, 0, {})
    assert (project.store.tracks["status"] == "ok").all()


def test_an_emptied_folder_is_counted_in_one_way(project: Any) -> None:
    """And when it is back, files that had failed are not tried again, and look as if nothing had happened."""
    (project.music / "bad.ogg").write_bytes(b"no audio" * 50)
    (project.music / "empty.wav").touch()
    once = project.music / "once.wav"
    shutil.copyfile(project.music / "eight.wav", once)
    project.extract()
    once.write_bytes(b"no audio any more" * 50)
    project.extract()
    n_tracks = len(project.store.tracks)
    before = project.store.index.tracks().sort_values("track_id", ignore_index=True)
    failures = project.store.failures
    rows, counted = project.rows(), f"{n_tracks} tracks and 2 failed files"
    told = project.run("status").stdout.splitlines()
    assert told[1].startswith(f"{n_tracks} tracks, ")
    assert told[1].endswith("1 whose file has failed since")
    assert told[2] == "2 failed files"

    project.music.rename(project.folder / "elsewhere")
    project.music.mkdir()
    plan = project.plan()
    assert plan["demo/bad.ogg"] == ("mark gone", "the file is gone, like all of demo (it had failed)")
    done = project.run("extract")
    assert f"collection demo: {n_tracks} tracks gone, features kept" in done.stderr
    assert done.stdout == f"{counted} marked gone\n"
    status = project.run_json("status")
    assert (status["tracks"], status["gone"], status["failed_since"]) == (n_tracks, n_tracks, 0)
    assert (status["failed_files"], status["failed_files_gone"], status["failed"]) == (2, 2, 0)
    assert project.run("status").stdout.splitlines()[2] == "2 failed files, 2 gone"
    assert f"would remove all {n_tracks} tracks of demo" in project.run("prune", "--dry-run").stderr
    dry = project.run("prune", "--dry-run", "--collection", "demo")
    assert dry.stdout.splitlines()[-1] == f"{counted} would be removed."
    found = project.run_json("diff", str(project.store.snapshot - 1))
    assert {row["change"] for row in found["tracks"] + found["failed_files"]} == {"gone"}
    assert (len(found["tracks"]), len(found["failed_files"])) == (n_tracks, 2)

    project.music.rmdir()
    (project.folder / "elsewhere").rename(project.music)
    done = project.run("extract", process=True)  # nothing is decoded, so no worker is started
    assert (done.stdout, done.stderr) == (f"{counted} back\n", "")
    assert project.store.failures.equals(failures)
    assert project.store.index.tracks().sort_values("track_id", ignore_index=True).equals(before)
    assert project.rows() == rows
    assert all(action == "skip" for action, _ in project.plan().values())
    changes = project.run_json("snapshots")
    assert changes[0]["counts"] == {"back": n_tracks, "failed_files_back": 2}
    assert changes[1]["changes"] == f"{n_tracks} marked gone, 2 failed files marked gone"

    (project.music / "bad.ogg").write_bytes(b"something else" * 50)
    assert project.extract().failures == 1


def test_a_failed_track_that_could_not_be_read_in_between_is_not_taken_for_what_is_stored(
    project: Any,
) -> None:
    real = project.folder / "disk" / "song.flac"
    real.parent.mkdir()
    shutil.copyfile(project.music / "native.flac", real)
    (project.music / "linked.flac").symlink_to(real)
    project.extract()
    real.write_bytes(b"no music " * 500)
    project.extract()
    real.parent.rename(project.folder / "unmounted")
    project.extract()
    assert project.store.failures.loc["demo/linked.flac", "stage"] == "scan"
    (project.folder / "unmounted").rename(real.parent)
    assert project.extract().failures == 1
    assert project.store.tracks.loc["demo/linked.flac", "status"] == "failed"


@pytest.mark.parametrize("mishap", ["broken link", "empty", "garbage"])
def test_a_song_that_breaks_keeps_the_features_it_had(project: Any, mishap: str) -> None:
    real = project.folder / "disk" / "song.wav"
    real.parent.mkdir()
    shutil.copyfile(project.music / "native.flac", real.with_suffix(".flac"))
    link = project.music / "linked.flac"
    link.symlink_to(real.with_suffix(".flac"))
    project.extract()
    before = project.rows()
    target = real.with_suffix(".flac")
    content = target.read_bytes()
    if mishap == "broken link":
        real.parent.rename(project.folder / "unmounted")
    else:
        target.write_bytes(b"" if mishap == "empty" else b"no music " * 500)

    assert project.extract().failures == 1
    store = project.store
    assert list(store.failures.index) == ["demo/linked.flac"]
    assert store.tracks.loc["demo/linked.flac", "status"] == "failed"
    assert project.rows() == before
    report = project.extract()  # and a further run leaves it alone
    assert (report.songs, report.failures, report.updated) == (0, 0, 0)

    if mishap == "broken link":
        (project.folder / "unmounted").rename(real.parent)
        report = project.extract()
        assert (report.songs, report.updated) == (0, 1)
    else:
        target.write_bytes(content)
        project.extract()
    assert (project.store.tracks["status"] == "ok").all()
    assert len(project.store.failures) == 0
    assert project.rows() == before


def test_workers_and_a_scheduler_exclude_each_other(project: Any) -> None:
    done = project.run("extract", "--workers", "3", shared=True)
    assert done.returncode == 2
    assert "workers" in done.stderr
    assert "Traceback" not in done.stderr


def test_many_moves_are_one_join(project: Any) -> None:
    project.extract()
    before = {name: row for (track, name), row in project.rows().items() if track == "demo/long.ogg"}
    project.music.joinpath("new place").mkdir()
    for song in [path for path in project.music.rglob("*.*") if path.is_file()]:
        song.rename(project.music / "new place" / song.name)
    report = project.extract()
    assert (report.songs, report.moved, report.gone) == (0, len(project.store.tracks), 0)
    after = project.rows()
    assert {name: row for (track, name), row in after.items() if track == "demo/new place/long.ogg"} == before


def test_songs_that_have_gone_get_new_features_too(project: Any) -> None:
    project.write_catalog(AUDIO)
    project.extract()
    n_tracks = len(project.store.tracks)
    for song in [path for path in project.music.rglob("*.*") if path.is_file()]:
        song.unlink()
    assert project.extract().gone == n_tracks
    project.write_catalog(AUDIO, LOGMEL)
    report = project.extract()
    assert (report.songs, report.computed) == (0, n_tracks)
    assert len(project.store["logmel"].tracks) == n_tracks
    assert project.plan() == {}
    # Gone and wanting at once is one run too.
    project.write_catalog(AUDIO, LOGMEL, "mfcc: {kind: mfcc, from: logmel, n_mfcc: 12}")
    assert project.extract().computed == n_tracks


def test_what_a_cut_computation_left_is_collected(project: Any) -> None:
    project.write_catalog(AUDIO)
    project.extract()
    part = project.store_folder / "parts" / project.store.tracks["part"].iloc[0]
    project.write_catalog(AUDIO, LOGMEL)
    from pipeline.catalog import load_catalog

    name = load_catalog(project.catalog).resolved_features()["logmel"].array_name
    for leftover in (part / name, part / f"{name}.0badcafe"):
        (leftover / "c" / "0").mkdir(parents=True)
        (leftover / "c" / "0" / "0").write_bytes(b"half a shard")
    assert project.run_json("status")["orphan_arrays"] == 2
    project.extract()
    expected = project.rows()
    assert project.run_json("status")["orphan_arrays"] == 2
    project.run_json("gc", "--grace", "0")
    assert project.run_json("status")["orphan_arrays"] == 0
    assert project.rows() == expected


def test_what_other_tools_do_to_the_tables_hides_nothing(project: Any) -> None:
    """Delta's own upkeep makes commits that do not name a version of `arrays`."""
    from deltalake import DeltaTable

    project.extract()
    before = project.rows()
    for name in ("tracks", "arrays"):
        DeltaTable(project.store_folder / name).optimize.compact()
        DeltaTable(project.store_folder / name).vacuum(dry_run=False)
    assert project.rows() == before
    project.add_song("another.wav", seconds=2.0, seed=5)
    assert project.extract().songs == 1
    project.run_json("gc", "--grace", "0")
    after = project.rows()
    assert {key: after[key] for key in before} == before


def test_a_store_whose_making_was_cut_short_is_completed(project: Any) -> None:
    from features.framing import Grid
    from pipeline.store.index import Index

    Index.create(project.store_folder, Grid(frames_per_chunk=64, min_tail_s=0.5))
    (project.store_folder / FORMAT_FILE).rename(project.store_folder / f".{FORMAT_FILE}.4711")
    assert project.extract().songs > 0


def test_status_names_the_store_as_one_would_type_it(project: Any) -> None:
    project.extract()
    assert project.run("status").stdout.splitlines()[0] == "./store"
