"""Extraction from end to end: what a run does, does again, and does not do; and the features it gives."""

import contextlib
import io
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.cluster
import pipeline.jobs
import pipeline.run
from features.framing import Grid, chunks
from pipeline.commands.progress import ProgressDisplay
from pipeline.computation import FeatureChain
from pipeline.definitions import AudioDefinition, Feature, LogMelDefinition, MfccDefinition, resolve
from pipeline.errors import AudioError, ClusterError, StoreDamagedError, UnknownNameError
from pipeline.jobs import ComputeJob, ExtractJob, JobResult, run
from pipeline.planning import Action
from pipeline.store.location import location_of
from pipeline.store.records import TrackRow
from pipeline.store.shard_reader import ShardReader

AUDIO = "audio: {kind: audio, sample_rate: 12000, dtype: int16}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_fft: 512, n_mels: 32}"
WIDE = "wide: {kind: log_mel, from: audio, n_fft: 2048, n_mels: 48}"
MFCC = "mfcc: {kind: mfcc, from: logmel, n_mfcc: 12}"
N_SONGS = 6


def untouched(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file below a folder."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker can be had: a run that wants one fails."""

    def refused(**_: Any) -> None:
        raise AssertionError("a run with nothing to compute asked for workers")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.cluster, "connected", refused)
        yield


# The Python side


def test_first_run(project: Any) -> None:
    plans, progress = [], []
    report = project.extract(on_plan=plans.append, on_progress=lambda now: progress.append(now.songs_done))
    assert (report.songs, report.failures, report.computed, report.interrupted) == (N_SONGS, 0, 0, False)
    tracks = project.store.tracks
    assert report.audio_s == pytest.approx(tracks["duration_s"].sum())
    assert list(plans[0].tracks["action"]) == [Action.EXTRACT] * N_SONGS
    assert progress[-1] == N_SONGS
    assert progress == sorted(progress)
    assert list(tracks.index) == sorted(
        f"demo/{path.relative_to(project.music)}" for path in project.music.rglob("*.*")
    )
    assert set(tracks["status"]) == {"ok"}
    expected_s = {"long.ogg": 40.0, "eight.wav": 2.0, "short.wav": 0.01, "sub/folder/mono.ogg": 6.3}
    for name, seconds in expected_s.items():
        assert tracks.loc[f"demo/{name}", "duration_s"] == pytest.approx(seconds, abs=0.002)
    long = tracks.loc["demo/long.ogg"]
    assert (long["codec"], long["source_rate"], long["channels"]) == ("vorbis", 44_100, 2)
    grid = Grid(frames_per_chunk=64, min_tail_s=0.5)
    assert list(tracks["n_chunks"]) == [grid.n_chunks(int(n)) for n in tracks["n_samples"]]
    assert tracks.loc["demo/short.wav", "n_chunks"] == 1


def test_second_run_does_nothing(project: Any, no_cluster_after: Any) -> None:
    project.extract()
    before = untouched(project.store_folder)
    no_cluster_after()
    report = project.extract()
    assert (report.songs, report.computed, report.updated, report.moved, report.gone) == (0, 0, 0, 0, 0)
    after = untouched(project.store_folder)
    lock = str(project.store_folder / ".lock")
    assert {k: v for k, v in after.items() if k != lock} == {k: v for k, v in before.items() if k != lock}
    assert project.plan() == {}


@pytest.fixture
def no_cluster_after(request: pytest.FixtureRequest) -> Any:
    """Call it, and from then on no worker can be had."""
    return lambda: request.getfixturevalue("no_cluster")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_second_run_opens_no_audio(project: Any, tmp_path: Path) -> None:
    project.extract()
    trace = tmp_path / "trace"
    command = Path(sys.executable).with_name("mirstore")
    strace = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", trace]
    done = subprocess.run([*strace, command, "extract"], cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    opened = [line for line in trace.read_text().splitlines() if str(project.music) in line]
    assert all("O_DIRECTORY" in line for line in opened)
    assert "catalog.yaml" in trace.read_text()  # the trace does see files


@pytest.fixture
def a_job_a_song(monkeypatch: pytest.MonkeyPatch) -> None:
    def single(tracks: Any, *_: Any, **__: Any) -> Any:
        return [tracks.iloc[[place]] for place in range(len(tracks))]

    monkeypatch.setattr(pipeline.run, "batches", single)


@pytest.mark.usefixtures("a_job_a_song")
def test_slow_commits_become_few(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    genuine = pipeline.run.Run.take

    def counting(run: Any, batch: Any) -> None:
        taken.append(len(batch))
        genuine(run, batch)

    def commits() -> int:
        counts = project.store.snapshots["counts"]
        return sum(bool(count.get("added") or count.get("updated")) for count in counts)

    monkeypatch.setattr(pipeline.run.Run, "take", counting)
    for seconds_between, expected in ((0.0, lambda: len(taken)), (math.inf, lambda: min(len(taken), 2))):
        shutil.rmtree(project.folder / "store", ignore_errors=True)
        taken.clear()
        monkeypatch.setattr(pipeline.run, "SECONDS_BETWEEN", seconds_between)
        assert project.extract().songs == N_SONGS
        assert len(project.store.tracks) == sum(taken) == N_SONGS
        assert commits() == expected()


@pytest.mark.usefixtures("a_job_a_song")
@pytest.mark.parametrize("error", [ClusterError("the workers have gone"), RuntimeError("a bug")])
def test_what_is_finished_is_committed_when_the_run_fails(
    project: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    genuine = pipeline.cluster.finished_jobs

    def failing(*arguments: Any, **options: Any) -> Iterator[Any]:
        with contextlib.closing(genuine(*arguments, **options)) as batches:
            yield next(batches)[:1]
        raise error

    monkeypatch.setattr(pipeline.run, "SECONDS_BETWEEN", math.inf)
    monkeypatch.setattr(pipeline.run.Run, "tick", lambda *_: None)
    monkeypatch.setattr(pipeline.cluster, "finished_jobs", failing)
    with pytest.raises(type(error), match=str(error)):
        project.extract()
    committed = project.store.tracks
    assert len(committed) == 1
    monkeypatch.setattr(pipeline.cluster, "finished_jobs", genuine)
    assert project.extract().songs == N_SONGS - 1


def test_changed_file(project: Any) -> None:
    project.extract()
    before = project.rows()
    project.add_song("eight.wav", seconds=3.5, sample_rate=8000, seed=99)
    assert project.plan() == {"demo/eight.wav": ("extract", "the file has changed")}
    assert project.extract().songs == 1
    after = project.rows()
    assert after.keys() == before.keys()
    assert {name for name, _ in after if after[name, _] != before[name, _]} == {"demo/eight.wav"}
    assert project.store.tracks.loc["demo/eight.wav", "duration_s"] == pytest.approx(3.5)
    assert project.store.tracks.index.is_unique
    assert project.plan() == {}


def test_changed_file_of_the_same_size_and_time_of_day(project: Any) -> None:
    project.extract()
    path = project.music / "native.flac"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 123))
    assert project.plan() == {"demo/native.flac": ("extract", "the file has changed")}


def test_touched_file(project: Any, no_cluster_after: Any) -> None:
    project.extract()
    before = project.rows()
    path = project.music / "long.ogg"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    no_cluster_after()
    assert project.plan() == {"demo/long.ogg": ("update", "touched, same content")}
    report = project.extract()
    assert (report.songs, report.updated) == (0, 1)
    assert project.store.tracks.loc["demo/long.ogg", "mtime_ns"] == path.stat().st_mtime_ns
    assert project.rows() == before
    assert project.plan() == {}


def test_moved_file(project: Any, no_cluster_after: Any) -> None:
    project.extract()
    before = project.rows()
    (project.music / "new").mkdir()
    (project.music / "long.ogg").rename(project.music / "new" / "name.ogg")
    no_cluster_after()
    assert project.plan() == {"demo/new/name.ogg": ("move", "moved, same content")}
    report = project.extract()
    assert (report.songs, report.moved, report.gone) == (0, 1, 0)
    after = project.rows()
    assert len(after) == len(before)
    assert (
        after["demo/new/name.ogg", _version(project, "mfcc")]
        == before["demo/long.ogg", _version(project, "mfcc")]
    )
    assert "demo/long.ogg" not in project.store.tracks.index
    assert project.plan() == {}


def _version(project: Any, name: str) -> str:
    return f"{name}@{project.store[name].fingerprint}"


def test_gone_file_and_back(project: Any, no_cluster_after: Any) -> None:
    project.extract()
    before = project.rows()
    path = project.music / "long.ogg"
    path.rename(project.folder / "aside.ogg")
    no_cluster_after()
    assert project.extract().gone == 1
    assert project.store.tracks.loc["demo/long.ogg", "status"] == "gone"
    assert project.rows() == before, "features of a file that has gone are kept"
    assert project.extract().gone == 0
    assert project.run_json("status")["gone"] == 1
    (project.folder / "aside.ogg").rename(path)
    assert project.plan() == {"demo/long.ogg": ("back", "back in its collection")}
    report = project.extract()
    assert (report.back, report.updated) == (1, 0)
    assert project.store.tracks.loc["demo/long.ogg", "status"] == "ok"
    assert project.rows() == before
    assert project.plan() == {}


def test_new_features_come_from_the_cache_alike(project: Any) -> None:
    """Bit for bit what a fresh extraction gives, with every audio file out of reach."""
    project.write_catalog(AUDIO)
    project.extract()
    project.write_catalog(AUDIO, LOGMEL, WIDE, MFCC)
    # A plan wants names and sizes, so they stay; what is in the files does not.
    originals = project.folder / "originals"
    shutil.copytree(project.music, originals)
    for path in project.music.rglob("*.*"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert {action for action, _ in project.plan().values()} == {"compute"}
    report = project.extract()
    assert (report.songs, report.computed, report.failures) == (0, N_SONGS, 0)
    from_cache = project.rows()
    assert project.plan() == {}

    shutil.rmtree(project.store_folder)
    project.write_catalog(AUDIO, LOGMEL, WIDE, MFCC, demo="./originals")
    assert project.extract().songs == N_SONGS
    assert project.rows() == from_cache
    assert len(from_cache) == N_SONGS * 4


def test_features_of_files_that_have_gone_are_computed_too_when_they_are_back(project: Any) -> None:
    project.write_catalog(AUDIO)
    project.extract()
    shutil.move(project.music, project.folder / "away")
    project.music.mkdir()
    project.add_song("new.wav")
    assert project.extract().gone == N_SONGS
    shutil.copytree(project.folder / "away", project.music, dirs_exist_ok=True)
    project.write_catalog(AUDIO, LOGMEL)
    project.extract()
    assert set(project.store["logmel"].tracks.index) == set(project.store.tracks.index)
    assert project.plan() == {}


def test_changed_parameter_makes_a_second_version(project: Any) -> None:
    project.extract()
    before = project.rows()
    first = project.store["mfcc"].fingerprint
    project.write_catalog(AUDIO, LOGMEL, MFCC.replace("12", "9"))
    report = project.extract()
    assert (report.songs, report.computed) == (0, N_SONGS)
    store = project.store
    assert store["mfcc"].row_shape == (9, 64)
    assert store[f"mfcc@{first}"].row_shape == (12, 64)
    after = project.rows()
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + N_SONGS
    # Going back costs nothing: the first version is still there.
    project.write_catalog(AUDIO, LOGMEL, MFCC)
    assert project.plan() == {}
    assert project.store["mfcc"].fingerprint == first


def test_feature_option(project: Any) -> None:
    project.extract(features=["logmel"])
    assert list(project.store) == ["audio", "logmel"]
    assert project.plan(features=["audio"]) == {}
    assert project.extract(features=["mfcc"]).computed == N_SONGS
    assert list(project.store) == ["audio", "logmel", "mfcc"]
    with pytest.raises(UnknownNameError, match="Did you mean 'mfcc'"):
        project.extract(features=["mfc"])


def test_collection_option(project: Any) -> None:
    project.write_catalog(one="./music", two="./more")
    more = project.folder / "more"
    shutil.copytree(project.music / "sub", more)
    assert project.extract(collections=["two"]).songs == 2
    shutil.rmtree(more / "folder")
    assert project.extract(collections=["one"]).songs == N_SONGS
    tracks = project.store.tracks
    assert list(tracks.groupby("collection").size()) == [N_SONGS, 2]
    assert set(tracks["status"]) == {"ok"}, "a collection that was not named was looked at"
    with pytest.raises(UnknownNameError, match="three"):
        project.extract(collections=["three"])


def test_same_content_twice_is_two_tracks(project: Any) -> None:
    shutil.copy(project.music / "eight.wav", project.music / "copy.wav")
    assert project.extract().songs == N_SONGS + 1
    assert (
        project.store["audio"].stored("demo/copy.wav").tobytes()
        == project.store["audio"].stored("demo/eight.wav").tobytes()
    )


def test_failed_file_is_left_alone_until_asked_for(project: Any, no_cluster_after: Any) -> None:
    bad = project.music / "bad.ogg"
    bad.write_bytes(b"no audio at all" * 100)
    report = project.extract()
    assert (report.songs, report.failures) == (N_SONGS, 1)
    assert project.extract(retry_failed=True).failures == 1
    failures = project.store.failures
    assert list(failures.index) == ["demo/bad.ogg"]
    assert failures.loc["demo/bad.ogg", "stage"] == "open"
    assert project.plan() == {"demo/bad.ogg": ("skip", "failed before, unchanged")}
    shutil.copy(project.music / "eight.wav", bad)
    assert project.extract().songs == 1
    assert len(project.store.failures) == 0
    no_cluster_after()
    project.extract()


def test_labels_and_names_in_every_script(empty_project: Any) -> None:
    for name in ("Ünïcödé 音楽.wav", "with [brackets] & 'quotes'.wav", "a,b;c #1 100%.wav"):
        empty_project.add_song(name, seconds=0.5)
    assert empty_project.extract().songs == 3
    for track_id in empty_project.store.tracks.index:
        assert empty_project.store["mfcc"].track(track_id).shape == (1, 12, 64)
    assert empty_project.plan() == {}


def test_scheduler_that_does_not_answer(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import extract

    genuine = pipeline.cluster.Client
    monkeypatch.setattr(pipeline.cluster, "Client", lambda address, timeout: genuine(address, timeout="0.2s"))
    with socket.socket() as held:  # nothing listens at its port, and nothing else can start to
        held.bind(("127.0.0.1", 0))
        with pytest.raises(ClusterError, match="no Dask scheduler answers"):
            extract(project.catalog, scheduler=f"tcp://127.0.0.1:{held.getsockname()[1]}")


# The command line


def test_command_line_from_start_to_end(project: Any) -> None:
    (project.music / "bad.mp3").write_bytes(b"\0" * 999)
    planned = project.run_json("extract", "--dry-run", process=True)
    assert {row["action"] for row in planned} == {"extract"}
    assert len(planned) == N_SONGS + 1
    dry = project.run("extract", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "new" in dry.stdout
    assert not project.store_folder.exists(), "--dry-run made a store"

    report = project.run_json("extract", "--workers", "1", process=True)
    assert (report["songs"], report["failures"]) == (N_SONGS, 1)
    assert project.run_json("extract", "--dry-run") == [
        {
            "track_id": "demo/bad.mp3",
            "action": "skip",
            "reason": "failed before, unchanged",
            "size": 999,
            "old_track_id": None,
        }
    ]
    status = project.run_json("status")
    assert (status["tracks"], status["failed"], status["orphan_parts"]) == (N_SONGS, 1, 0)
    assert [row["feature"] for row in status["features"]] == ["audio", "logmel", "mfcc"]
    assert {row["tracks"] for row in status["features"]} == {N_SONGS}
    [failure] = project.run_json("failures")["failed"]
    assert failure["track_id"] == "demo/bad.mp3"
    assert project.run_json("gc")["unneeded"] == []
    checked = project.run_json("catalog", "check")
    assert [row["feature"] for row in checked["features"]] == ["audio", "logmel", "mfcc"]
    for verb, words in (
        ("status", f"{N_SONGS} tracks"),
        ("failures", "bad.mp3"),
        ("extract", "Nothing to do"),
    ):
        done = project.run(verb, process=True)
        assert (done.returncode, done.stderr) == (0, ""), verb
        assert words in done.stdout


def test_what_failed_is_counted_apart_from_what_is_decoded(project: Any) -> None:
    (project.music / "empty.wav").touch()
    (project.music / "bad.mp3").write_bytes(b"\0" * 999)
    seen: list[tuple[int, int]] = []
    told = io.StringIO()
    with ProgressDisplay() as display, contextlib.redirect_stderr(told):
        report = project.extract(
            on_plan=display.planned, on_progress=lambda p: seen.append((p.songs_total, p.failures))
        )
    assert (
        told.getvalue() == f"{N_SONGS + 1} songs to decode, 1 file that cannot be opened. Starting workers.\n"
    )
    assert (report.songs, report.failures, report.unopened) == (N_SONGS, 2, 1)
    assert set(seen) <= {(N_SONGS + 1, 0), (N_SONGS + 1, 1)}
    assert seen[-1] == (N_SONGS + 1, 1)

    (project.music / "bad.mp3").write_bytes(b"\1" * 999)
    done = project.run("extract", shared=True)
    closing, failures = done.stdout.splitlines()
    assert re.fullmatch(r"no song could be decoded, in \d+ s \(\d+\.\d s start-up\)", closing)
    assert failures == "1 file failed: see `mirstore failures`"


def test_commits_count_in_the_words_of_extract(project: Any) -> None:
    (project.music / "empty.wav").touch()
    (project.music / "bad.mp3").write_bytes(b"\0" * 999)
    project.extract()
    first = project.store.snapshot
    assert project.store.at(0).snapshots.iloc[0]["changes"] == "store made"
    (project.music / "long.ogg").rename(project.music / "renamed.ogg")
    (project.music / "native.flac").unlink()
    project.add_song("eight.wav", seconds=5.0, seed=9)
    project.add_song("new.wav", seconds=1.0, seed=8)
    (project.music / "bad.mp3").write_bytes(b"\1" * 999)
    os.utime(project.music / "short.wav", ns=(0, 0))
    project.extract()
    assert project.run("prune").returncode == 0
    commits = project.store.snapshots.sort_values("snapshot")
    sums: list[Counter[str]] = []
    for part in (commits[commits["snapshot"] <= first], commits[commits["snapshot"] > first]):
        sums.append(Counter())
        for counts in part["counts"]:
            sums[-1].update({name: n for name, n in counts.items() if name != "arrays"})
    assert sums == [
        {"failed": 2, "added": N_SONGS},
        {"moved": 1, "updated": 1, "marked_gone": 1, "added": 1, "changed": 1, "failed": 1, "removed": 1},
    ]
    assert commits["changes"].iloc[-1] == "1 removed"


def test_dry_run_changes_nothing(project: Any) -> None:
    project.extract()
    (project.music / "long.ogg").rename(project.music / "renamed.ogg")
    (project.music / "eight.wav").unlink()
    project.add_song("new.wav")
    os.utime(project.music / "native.flac", ns=(0, 0))
    before = untouched(project.store_folder)
    actions = {row["track_id"]: row["action"] for row in project.run_json("extract", "--dry-run")}
    assert actions == {
        "demo/renamed.ogg": "move",
        "demo/eight.wav": "mark gone",
        "demo/new.wav": "extract",
        "demo/native.flac": "update",
    }
    assert untouched(project.store_folder) == before


def test_options_of_the_command_line(project: Any) -> None:
    project.write_catalog(one="./music", two="./music/sub")
    bad = project.music / "sub" / "bad.wav"
    bad.write_bytes(b"x" * 50)
    report = project.run_json("extract", "--collection", "two", "--feature", "audio", shared=True)
    assert (report["songs"], report["failures"]) == (2, 1)
    assert list(project.store) == ["audio"]
    assert set(project.store.tracks["collection"]) == {"two"}
    report = project.run_json("extract", "--collection", "two", "--retry-failed", shared=True)
    assert (report["songs"], report["computed"], report["failures"]) == (0, 2, 1)
    report = project.run_json("extract", shared=True)
    assert (report["songs"], report["failures"]) == (N_SONGS, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("extract", "--feature", "logmle"), "Did you mean 'logmel'"),
        (("extract", "--collection", "demos"), "Did you mean 'demo'"),
        (("extract", "--catalog", "nothing.yaml"), "nothing.yaml"),
        (("status",), "mirstore extract"),
        (("failures",), "mirstore extract"),
        (("gc",), "mirstore extract"),
    ],
)
def test_expected_errors_are_one_line(project: Any, arguments: tuple[str, ...], words: str) -> None:
    done = project.run(*arguments)
    assert done.returncode == 2
    *before, line = done.stderr.splitlines()
    assert words in line
    assert line.startswith("mirstore: ")
    assert before == []
    assert done.stdout == ""


def test_packages_import_from_anywhere(tmp_path: Path) -> None:
    code = "import features, pipeline, training; print(pipeline.FeatureStore.__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "FeatureStore\n", "")


# What the features are: librosa on the whole of what is cached, whatever the length of the track


def features_on(grid: Grid, *, n_fft: int, dtype: str) -> tuple[Feature, ...]:
    definitions = {
        "audio": AudioDefinition(kind="audio"),
        "logmel": LogMelDefinition(kind="log_mel", from_="audio", n_fft=n_fft, n_mels=40, dtype=dtype),
        "mfcc": MfccDefinition(kind="mfcc", from_="logmel", n_mfcc=20, dtype=dtype),
    }
    return tuple(resolve(definitions, grid).values())


def chain_rows(
    features: Sequence[Feature], grid: Grid, samples: np.ndarray, cuts: Sequence[int]
) -> dict[str, np.ndarray]:
    """Stored rows of a track whose samples come in blocks."""
    rows: dict[str, list[np.ndarray]] = {feature.name: [] for feature in features}
    chain = FeatureChain(features, lambda name, row: rows[name].append(row.copy()))
    for chunk, _ in chunks(np.split(samples, cuts), grid):
        chain.push_audio(chunk)
    chain.finish_track()
    return {
        f.name: np.stack(rows[f.name]) if rows[f.name] else np.empty((0, *f.row_shape), f.dtype)
        for f in features
    }


def joined(rows: np.ndarray) -> np.ndarray:
    return np.concatenate(list(rows), axis=-1)


def check_against_librosa(grid: Grid, n_samples: int, n_fft: int, cuts: Sequence[int] = ()) -> None:
    rng = np.random.default_rng(n_samples)
    samples = (0.2 * rng.standard_normal(n_samples)).astype(np.float32)
    features = features_on(grid, n_fft=n_fft, dtype="float32")
    audio = features[0]
    stored = chain_rows(features, grid, samples, cuts)
    assert {len(rows) for rows in stored.values()} == {grid.n_chunks(n_samples)}
    if not n_samples:
        return
    cached = audio.values(stored["audio"].reshape(-1))[:n_samples]
    np.testing.assert_allclose(cached, samples[: len(cached)], atol=0.51 / 16384)
    expected = np.log(
        np.maximum(
            librosa.feature.melspectrogram(
                y=cached.astype(np.float64),
                sr=grid.sample_rate,
                n_fft=n_fft,
                hop_length=grid.hop_length,
                window="hamming",
                center=True,
                pad_mode="constant",
                n_mels=40,
                htk=True,
                norm=None,
            ),
            1e-10,
        )
    )
    n_frames = int(grid.valid_frames(n_samples).sum())
    assert n_frames == min(expected.shape[1], len(stored["audio"]) * grid.frames_per_chunk)
    got = joined(stored["logmel"])[:, :n_frames]
    np.testing.assert_allclose(got, expected[:, :n_frames], atol=1e-3)
    reference = librosa.feature.mfcc(S=got.astype(np.float64), n_mfcc=20, dct_type=2, norm="ortho")
    np.testing.assert_allclose(joined(stored["mfcc"])[:, :n_frames], reference, atol=1e-3)
    half = chain_rows(features_on(grid, n_fft=n_fft, dtype="float16"), grid, samples, cuts)
    np.testing.assert_array_equal(half["logmel"], stored["logmel"].astype(np.float16))
    from_half = scipy.fft.dct(half["logmel"].astype(np.float64), type=2, norm="ortho", axis=1)[:, :20]
    np.testing.assert_allclose(half["mfcc"], from_half, rtol=1e-3, atol=2e-3)


def lengths_around_borders(grid: Grid) -> list[int]:
    chunk, tail = grid.chunk_samples, round(grid.min_tail_s * grid.sample_rate)
    around = [0, 1, 255, 256, 257, 511, 512, 513]
    around += [
        chunk + step for step in (-513, -257, -256, -255, -1, 0, 1, 255, 256, 257, tail - 1, tail, tail + 1)
    ]
    around += [2 * chunk + step for step in (-256, -1, 0, 1, 256, tail - 1, tail)]
    return around


SMALL = Grid(frames_per_chunk=64, min_tail_s=0.5)


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large for input signal")
@pytest.mark.parametrize("n_fft", [512, 2048])
@pytest.mark.parametrize("n_samples", lengths_around_borders(SMALL))
def test_small_chunks_join_to_what_librosa_gives(n_samples: int, n_fft: int) -> None:
    check_against_librosa(SMALL, n_samples, n_fft)


@pytest.mark.parametrize("n_fft", [512, 2048])
@pytest.mark.parametrize("n_samples", [349_695, 349_696, 349_697, 349_952, 385_696, 699_391, 699_393])
def test_chunks_join_to_what_librosa_gives(n_samples: int, n_fft: int) -> None:
    check_against_librosa(Grid(), n_samples, n_fft)


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large for input signal")
@settings(max_examples=40)
@given(
    st.integers(0, 3),
    st.integers(-600, 600),
    st.sampled_from([256, 512, 1024, 2048, 4096]),
    st.lists(st.integers(0, 4 * SMALL.chunk_samples), max_size=6).map(sorted),
)
def test_no_seam_at_any_length(n_chunks: int, offset: int, n_fft: int, cuts: list[int]) -> None:
    n_samples = max(0, n_chunks * SMALL.chunk_samples + offset)
    check_against_librosa(SMALL, n_samples, n_fft, [cut for cut in cuts if cut <= n_samples])


# Jobs: rows do not depend on what else is in a job, and the cache gives them again


def rows_of(project: Any, names: Sequence[str]) -> tuple[TrackRow, ...]:
    return tuple(
        TrackRow(f"demo/{name}", "demo", str(project.music / name), 1, 1, "planned") for name in names
    )


def catalog_features(project: Any) -> tuple[Feature, ...]:
    from pipeline import load_catalog

    return tuple(load_catalog(project.catalog).resolved_features().values())


def arrays_by_track(project: Any, result: JobResult) -> dict[tuple[str, str], bytes]:
    found = {}
    for array in result.arrays:
        reader = ShardReader(location_of(project.store_folder), array.part, array.array)
        for track in result.tracks:
            if track.status == "ok":
                assert track.row_start is not None
                assert track.n_chunks is not None
                part = reader.rows(track.row_start, track.row_start + track.n_chunks)
                found[track.track_id, array.array.partition(".")[0]] = part.tobytes()
    return found


@pytest.fixture
def worked(project: Any) -> Any:
    project.write_catalog(AUDIO, LOGMEL, WIDE, MFCC)
    return project


NAMES = ["eight.wav", "long.ogg", "native.flac", "short.wav", "sub/folder/mono.ogg", "sub/stereo.wav"]


def test_rows_do_not_depend_on_the_other_tracks_of_a_job(worked: Any) -> None:
    features = catalog_features(worked)
    together = run(ExtractJob(location_of(worked.store_folder), rows_of(worked, NAMES), features))
    backwards = run(ExtractJob(location_of(worked.store_folder), rows_of(worked, NAMES[::-1]), features))
    expected = arrays_by_track(worked, together)
    assert len(expected) == len(NAMES) * 4
    assert arrays_by_track(worked, backwards) == expected
    for name in NAMES:
        alone = run(ExtractJob(location_of(worked.store_folder), rows_of(worked, [name]), features))
        assert arrays_by_track(worked, alone).items() <= expected.items()


@pytest.mark.parametrize("kept", [("audio",), ("audio", "logmel"), ("audio", "wide"), ("audio", "mfcc")])
@pytest.mark.parametrize("broken", [False, True])
def test_the_cache_gives_the_same_bits(
    worked: Any, kept: tuple[str, ...], broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a track that broke off in the middle and left rows that nobody owns."""
    features = catalog_features(worked)
    if broken:
        genuine = pipeline.jobs.open_audio

        class BreakingOff:
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                self.stream.__exit__(None, None, None)

            def __iter__(self) -> Iterator[np.ndarray]:
                for number, block in enumerate(self.stream):
                    if number == 9:
                        raise AudioError("long.ogg", "decode", "broke off")
                    yield block

        def breaking_off(path: str, **options: Any) -> Any:
            stream = genuine(path, **options)
            return BreakingOff(stream) if path.endswith("long.ogg") else stream

        monkeypatch.setattr(pipeline.jobs, "open_audio", breaking_off)
    whole = run(ExtractJob(location_of(worked.store_folder), rows_of(worked, NAMES), features))
    assert sum(track.status == "failed" for track in whole.tracks) == broken
    rows = {array.array: array.rows for array in whole.arrays}
    assert len(set(rows.values())) == 1
    owned = sum(track.n_chunks or 0 for track in whole.tracks)
    assert (rows[features[0].array_name] > owned) == broken
    expected = arrays_by_track(worked, whole)

    for feature in features:
        if feature.name not in kept:
            part_folder = worked.store_folder / "parts" / whole.arrays[0].part
            shutil.rmtree(part_folder / feature.array_name)
    missing = tuple(feature for feature in features if feature.name not in kept)
    sources = tuple((f, f.array_name) for f in features if f.name in kept)
    again = run(
        ComputeJob(location_of(worked.store_folder), whole.arrays[0].part, missing, sources, len(NAMES))
    )
    names = [array.array.partition(".")[0] for array in again.arrays]
    assert names == [feature.array_name for feature in missing]
    for array in again.arrays:
        assert array.rows == rows[array.array.partition(".")[0]]
    found = arrays_by_track(worked, replace(whole, arrays=again.arrays))
    assert found == {key: rows for key, rows in expected.items() if key[1] in names}


def test_job_without_a_single_good_track_leaves_no_part(worked: Any) -> None:
    (worked.music / "bad.wav").write_bytes(b"RIFF")
    result = run(
        ExtractJob(
            location_of(worked.store_folder),
            rows_of(worked, ["bad.wav", "none.wav"]),
            catalog_features(worked),
        )
    )
    assert [(track.status, track.stage) for track in result.tracks] == [("failed", "open")] * 2
    assert result.arrays == ()
    assert list(worked.store_folder.glob("parts/*")) == []


def test_damaged_cache_is_not_computed_from(project: Any) -> None:
    project.write_catalog(AUDIO)
    project.extract()
    [shard, *_] = (project.store_folder / "parts").glob("*/audio@*/c/0/0")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 4
    shard.write_bytes(content)
    project.write_catalog(AUDIO, LOGMEL)
    with pytest.raises(StoreDamagedError, match="audio@"):
        project.extract()
    assert len(project.store.tracks) == N_SONGS
    if "logmel" in project.store:
        assert len(project.store["logmel"].tracks) < N_SONGS
