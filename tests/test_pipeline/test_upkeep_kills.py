"""Upkeep that is killed, and readers beside upkeep: real processes of the command line.

For more or fewer kills of each command: ``MIRSTORE_KILLS=3 pytest <this file>``.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

import pipeline.run
from pipeline import FeatureStore, extract
from pipeline.catalog import load_catalog
from pipeline.errors import StoreDamagedError, StoreError
from pipeline.store.compaction import compact
from pipeline.store.index import Index
from pipeline.store.shard_reader import ShardReader
from pipeline.store.verification import verify

N_KILLS = int(os.environ.get("MIRSTORE_KILLS", "10"))
HANG_S = 300.0  # far past what any command here takes, on a slow and loaded machine too
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
Rows = dict[tuple[str, str], bytes]
# Most of a command is the start of Python: each is a process of its own, forked off where all is imported.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "pytest",
        "pipeline.catalog",
        "pipeline.commands.app",
        "pipeline.labels",
        "pipeline.store.compaction",
        "pipeline.store.garbage",
        "pipeline.store.removal",
    ]
)
COMMAND = """\
import os, sys
from pipeline.commands import main
os.chdir(folder)
said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(said, 1), os.dup2(said, 2)
sys.argv = ["mirstore", *arguments]
main()
"""
FORGOTTEN = tuple(f"demo/{number:02}.wav" for number in (0, 3, 9, 13, 14))


def track_per_job(tracks: Any, *_: Any, **__: Any) -> list[Any]:
    return [tracks.iloc[[number]] for number in range(len(tracks))]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory, scheduler: str) -> Path:
    """A project of twenty small parts: dead rows, gone tracks, two versions; not to be changed."""
    folder = tmp_path_factory.mktemp("crowded")
    (folder / "music").mkdir()
    (folder / "catalog.yaml").write_text(CATALOG)

    def write(number: int, seed: int) -> None:
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 12_000 * 2)
        sf.write(folder / "music" / f"{number:02}.wav", noise, 12_000)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.run, "batches", track_per_job)
        for number in range(16):
            write(number, number)
        extract(folder / "catalog.yaml", scheduler=scheduler)
        for number in range(0, 10, 2):
            write(number, 100 + number)
        for number in range(10, 13):
            (folder / "music" / f"{number:02}.wav").unlink()
        (folder / "catalog.yaml").write_text(CATALOG.replace("n_mels: 8", "n_mels: 6"))
        extract(folder / "catalog.yaml", scheduler=scheduler)
    tracks = FeatureStore(folder / "store").tracks.index
    (folder / "tags.csv").write_text("track_id,mood\n" + "".join(f"{name},calm\n" for name in tracks))
    return folder


@pytest.fixture(scope="module")
def compacted(tmp_path_factory: pytest.TempPathFactory, crowded: Path) -> Path:
    """The crowded project with old parts that only older snapshots name."""
    folder = tmp_path_factory.mktemp("compacted") / "project"
    shutil.copytree(crowded, folder)
    compact(folder / "store", least_live=1.0)
    return folder


def rows_of(store: FeatureStore) -> Rows:
    found = {}
    for version in sorted(set(store.arrays["feature"] + "@" + store.arrays["fingerprint"])):
        feature = store[version]
        for track_id in feature.tracks.index:
            found[track_id, version] = feature.stored(track_id).tobytes()
    if "mood" in store.tracks:
        found |= {(track_id, "mood"): mood.encode() for track_id, mood in store.tracks["mood"].items()}
    return found


def without_gone(store: FeatureStore, rows: Rows) -> Rows:
    gone = set(store.tracks.index[store.tracks["status"] == "gone"])
    assert gone
    return {key: content for key, content in rows.items() if key[0] not in gone}


def without_forgotten(_: FeatureStore, rows: Rows) -> Rows:
    return {key: content for key, content in rows.items() if key[0] not in FORGOTTEN}


def with_moods(store: FeatureStore, rows: Rows) -> Rows:
    return rows | {(track_id, "mood"): b"calm" for track_id in store.tracks.index}


def old_version(folder: Path) -> str:
    """The log-mel that the catalog no longer asks for."""
    wanted = load_catalog(folder / "catalog.yaml").resolved_features()["logmel"].fingerprint
    arrays = FeatureStore(folder / "store").arrays
    [old] = set(arrays.loc[arrays["feature"] == "logmel", "fingerprint"]) - {wanted}
    return f"logmel@{old}"


def without_dropped(store: FeatureStore, rows: Rows) -> Rows:
    version = old_version(Path(str(store.location)).parent)
    return {key: content for key, content in rows.items() if key[1] != version}


@dataclass(frozen=True)
class Trial:
    """A command to be killed: on which project, its arguments, what is visible once it is done, and how often."""

    project: str
    arguments: Callable[[Path], list[str]]
    after: Callable[[FeatureStore, Rows], Rows]
    n_kills: int = N_KILLS


TRIALS = {
    "compact": Trial("crowded", lambda _: ["compact"], lambda _, rows: rows),
    "gc": Trial("compacted", lambda _: ["gc", "--grace", "0", "--keep", "0"], lambda _, rows: rows),
    "prune": Trial("crowded", lambda _: ["prune"], without_gone),
    "forget": Trial("crowded", lambda _: ["forget", *FORGOTTEN], without_forgotten, (N_KILLS + 1) // 2),
    "labels add": Trial("crowded", lambda _: ["labels", "add", "tags.csv"], with_moods),
    "drop": Trial(
        "crowded", lambda folder: ["drop", old_version(folder)], without_dropped, (N_KILLS + 1) // 2
    ),
}


def started(folder: Path, arguments: list[str]) -> Any:
    """Process of a command; what it says goes to a file ``said`` of the folder."""
    process = FORKS.Process(target=exec, args=(COMMAND, {"folder": str(folder), "arguments": arguments}))
    process.start()
    return process


def wait_until_it_writes(folder: Path, process: Any) -> None:
    """Wait until a command holds the store."""
    lock = folder / "store" / ".lock"
    while process.is_alive():
        with contextlib.suppress(ValueError, KeyError):
            if json.loads(lock.read_text())["pid"] == process.pid:
                return
        process.join(0.002)


def kill(source: Path, folder: Path, arguments: list[str], delay_s: float) -> None:
    """Kill a command on a copy of a project, so long after it has begun to write.

    One that was done before is tried anew with half the delay.
    """
    for _ in range(12):
        shutil.copytree(source, folder)
        process = started(folder, arguments)
        wait_until_it_writes(folder, process)
        process.join(delay_s)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return
        shutil.rmtree(folder)
        delay_s /= 2
    pytest.fail("every kill came too late")


def working_time(folder: Path, arguments: list[str]) -> float:
    """Seconds that a command works, undisturbed."""
    process = started(folder, arguments)
    wait_until_it_writes(folder, process)
    begun = time.monotonic()
    process.join(HANG_S)
    assert process.exitcode == 0, (folder / "said").read_text()
    return time.monotonic() - begun


def pieces_of(store: FeatureStore, track_ids: tuple[str, ...]) -> set[bytes]:
    """Bytes of tracks' rows as they lie in the shards: noise, so no two are alike."""
    found = set()
    for version in set(store.arrays["feature"] + "@" + store.arrays["fingerprint"]):
        feature = store[version]
        for track_id in set(feature.tracks.index) & set(track_ids):
            part, start, count, _ = feature._span(track_id)
            reader = ShardReader(store.location, part, feature.rows.arrays[part])
            found |= {row[40:104] for row in reader.encoded(start, start + count)}
    return found


def is_anywhere(folder: Path, pieces: set[bytes]) -> bool:
    contents = [path.read_bytes() for path in (folder / "store").rglob("*") if path.is_file()]
    return any(piece in content for content in contents for piece in pieces)


@pytest.mark.parametrize("name", TRIALS)
def test_kill_at_any_moment_loses_nothing(
    name: str, request: pytest.FixtureRequest, empty_project: Any, tmp_path: Path
) -> None:
    trial = TRIALS[name]
    source: Path = request.getfixturevalue(trial.project)
    arguments = trial.arguments(source)
    store = FeatureStore(source / "store")
    before = rows_of(store)
    after = trial.after(store, before)
    wanted = pieces_of(store, FORGOTTEN) if name == "forget" else set()

    whole = tmp_path / "whole"
    shutil.copytree(source, whole)
    work_s = working_time(whole, arguments)
    assert rows_of(FeatureStore(whole / "store")) == after

    rng = np.random.default_rng(len(name))
    delays = 0.95 * work_s * (np.arange(trial.n_kills) + rng.random(trial.n_kills)) / trial.n_kills
    delays[0] = 0.0
    folders = [tmp_path / str(number) for number in range(trial.n_kills)]
    for folder, delay_s in zip(folders, delays, strict=True):
        kill(source, folder, arguments, delay_s)

    for folder in folders:
        empty_project.folder = folder
        seen = rows_of(FeatureStore(folder / "store"))
        assert seen in (before, after)
        assert verify(folder / "store").is_sound
        if name == "forget":  # what was written down before the kill happens at the next command
            assert empty_project.run("gc").returncode == 0
            assert is_anywhere(folder, wanted) == (seen != after)
        done = empty_project.run(*arguments)
        if name in ("forget", "drop") and seen == after:
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        else:
            assert done.returncode == 0, done.stderr
        assert empty_project.run("gc", "--grace", "0", "--keep", "0").returncode == 0
        arrays = Index(folder / "store").arrays()
        there = {(path.parent.name, path.name) for path in (folder / "store" / "parts").glob("*/*@*")}
        assert there == set(zip(arrays["part"], arrays["array"], strict=True))
        assert {path.name for path in (folder / "store" / "parts").iterdir()} == set(arrays["part"])
        assert {path.name for path in (folder / "store").rglob(".*")} == {".lock"}
        assert rows_of(FeatureStore(folder / "store")) == after
        assert verify(folder / "store").is_sound
        assert not is_anywhere(folder, wanted)
        shutil.rmtree(folder)


def test_readers_beside_upkeep_are_not_disturbed(crowded: Path, tmp_path: Path) -> None:
    """Read all the time, through readers that were there before, while one command after another runs."""
    folder = tmp_path / "project"
    shutil.copytree(crowded, folder)
    store = FeatureStore(folder / "store")
    before = rows_of(store)
    features = {version: store[version] for _, version in before}
    erased: set[str] = set()

    def read(forgetting: bool) -> None:
        for (track_id, version), content in before.items():
            try:
                assert features[version].stored(track_id).tobytes() == content
                assert track_id not in erased
            except StoreDamagedError:
                raise
            except StoreError as error:
                if not (forgetting or erased) or track_id not in FORGOTTEN or "was erased" not in str(error):
                    raise

    for arguments in (
        ["prune"],
        ["compact"],
        ["drop", old_version(folder)],
        ["gc", "--grace", "0"],
        ["forget", *FORGOTTEN],
    ):
        process = started(folder, arguments)
        wait_until_it_writes(folder, process)
        while process.is_alive():
            read(arguments[0] == "forget")
        process.join()
        assert process.exitcode == 0, (folder / "said").read_text()
        if arguments[0] == "forget":
            erased.update(FORGOTTEN)
        read(False)
    fresh = rows_of(FeatureStore(folder / "store", snapshot=store.snapshot))
    assert fresh == {key: content for key, content in before.items() if key[0] not in FORGOTTEN}
