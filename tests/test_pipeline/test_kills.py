"""Runs that end badly: killed, interrupted, with a file that kills its worker, two at a time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from pipeline import FeatureStore
from pipeline.store.folder import Folder
from pipeline.store.location import FORMAT_FILE
from pipeline.store.reading import open_part

N_SONGS = 64
N_KILLS = 20
HANG_S = 300.0  # far past what any run here takes, on a slow and loaded machine too


def fill(project: Any, n_songs: int, *, prefix: str = "song", seconds: float | None = None) -> None:
    rng = np.random.default_rng(5)
    for number in range(n_songs):
        length_s = seconds or rng.uniform(1.0, 9.0)
        project.add_song(f"{prefix}{number:02}.wav", sample_rate=8000, seconds=length_s, seed=number)


def kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def pause(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait so long, or until the process ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """Send what a terminal sends: an interrupt to the whole process group."""
    os.killpg(process.pid, signal.SIGINT)


def check_consistent(store: FeatureStore, expected: dict[tuple[str, str], bytes]) -> set[str]:
    """Every visible track is whole and its bytes are right; return the tracks."""
    tracks = store.tracks
    assert tracks.index.is_unique
    assert set(tracks["status"]) <= {"ok"}
    assert not store.arrays.duplicated(["part", "fingerprint"]).any()
    names = {name for _, name in expected}
    for track_id in tracks.index:
        for name in names:
            assert store[name].stored(track_id).tobytes() == expected[track_id, name]
    return set(tracks.index)


def test_kill_at_any_moment_loses_nothing_committed(empty_project: Any, start: Any) -> None:
    fill(empty_project, N_SONGS)
    begun = time.monotonic()
    assert start().wait(HANG_S) == 0
    whole_s = time.monotonic() - begun
    expected = empty_project.rows()
    all_tracks = set(empty_project.store.tracks.index)
    assert len(all_tracks) == N_SONGS
    assert empty_project.run_json("extract")["songs"] == 0
    empty_project.store_folder.rename(empty_project.folder / "undisturbed")

    # One kill while the first part is being written, so that there is an orphan whatever the clock does.
    largest = max(empty_project.music.iterdir(), key=lambda path: path.stat().st_size)
    process = start(held=largest.name)  # it is in the first job
    while process.poll() is None and not list(empty_project.store_folder.glob("parts/*")):
        pause(process, 0.01)
    kill_group(process)
    assert empty_project.store.unreferenced_parts
    visible = check_consistent(empty_project.store, expected)

    # Most of a short run is the start of the workers; most kills fall into the work after it.
    rng = np.random.default_rng(11)
    early = 0.55 * (np.arange(2) + rng.random(2)) / 2
    late = 0.55 + 0.45 * (np.arange(N_KILLS - 2) + rng.random(N_KILLS - 2)) / (N_KILLS - 2)
    for number, share in enumerate(rng.permutation(np.concatenate([early, late]))):
        process = start()
        pause(process, float(share) * whole_s)
        kill_group(process)
        if not (empty_project.store_folder / FORMAT_FILE).exists():
            continue
        now = check_consistent(empty_project.store, expected)
        assert visible <= now, "a committed track was lost"
        visible = now
        if visible == all_tracks:
            empty_project.store_folder.rename(empty_project.folder / f"finished-{number}")
            visible = set()

    (empty_project.store_folder / "parts" / "left over").mkdir(parents=True)  # one orphan at least
    assert empty_project.extract().failures == 0
    assert check_consistent(empty_project.store, expected) == all_tracks
    status = empty_project.run_json("status")
    assert status["orphan_parts"] == len(empty_project.store.unreferenced_parts) > 0
    assert empty_project.run_json("gc", "--grace", "3600", "--dry-run")["unneeded"]
    removed = empty_project.run_json("gc", "--grace", "0")["unneeded"]
    assert sum(orphan["removed"] for orphan in removed) >= status["orphan_parts"]
    assert empty_project.run_json("status")["orphan_parts"] == 0
    assert check_consistent(empty_project.store, expected) == all_tracks


def test_a_part_whose_tracks_were_never_committed_is_an_orphan_in_the_end(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two tables' commits leaves arrays that no track points to."""
    import pipeline.store.index as index_module

    class Killed(BaseException):
        pass

    genuine = index_module.write_deltalake

    def dying(table: Any, data: Any, **options: Any) -> None:
        if data.num_rows and data.schema.names[0] == "track_id":
            raise Killed
        genuine(table, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "write_deltalake", dying)
        with pytest.raises(Killed):
            project.extract()
    store = project.store
    assert len(store.tracks) == len(store.arrays) == 0
    assert store.unreferenced_parts
    assert project.extract().songs == len(list(project.music.rglob("*.*")))
    before = project.rows()
    project.run_json("gc", "--grace", "0")
    assert project.rows() == before
    on_disk = {path.name for path in (project.store_folder / "parts").iterdir()}
    assert on_disk == set(project.store.tracks["part"])


def test_file_that_kills_its_worker(empty_project: Any, start: Any) -> None:
    fill(empty_project, 6)
    killer = "killer.wav"
    empty_project.add_song(killer, seconds=2.0)
    process = start("--json", held="none")
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["songs"], report["failures"]) == (6, 1)
    [failure] = empty_project.run_json("failures")["failed"]
    assert (failure["track_id"], failure["stage"]) == (f"demo/{killer}", "worker")
    assert "died" in failure["reason"]
    assert "\n" not in failure["reason"]
    # Without the preload the file is good; a rerun does not know, and leaves it alone.
    again = empty_project.extract()
    assert (again.songs, again.failures) == (0, 0)
    assert empty_project.plan()[f"demo/{killer}"][0] == "skip"
    retried = empty_project.extract(retry_failed=True)
    assert (retried.songs, retried.failures) == (1, 0)
    assert len(empty_project.store.failures) == 0
    assert len(empty_project.store.tracks) == 7


def test_two_runs_at_once(empty_project: Any, start: Any) -> None:
    fill(empty_project, 12)
    processes = [start(), start()]
    ends = []
    for process in processes:
        _, err = process.communicate(timeout=HANG_S)
        ends.append((process.returncode, err))
    codes = sorted(code for code, _ in ends)
    assert codes in ([0, 0], [0, 2])
    for code, err in ends:
        if code == 2:
            assert len(err.splitlines()) == 1
            assert "mirstore extract" in err
    store = empty_project.store
    assert len(store.tracks) == 12
    assert store.tracks.index.is_unique
    assert store.unreferenced_parts == []
    assert int(store.arrays.query("kind == 'audio'")["rows"].sum()) == int(store.tracks["n_chunks"].sum())


@pytest.mark.parametrize("verb", [("extract",), ("gc",)])
def test_locked_store_names_its_holder(project: Any, verb: tuple[str, ...]) -> None:
    project.extract()
    with Folder(project.store_folder).lock("mirstore forget demo"):
        done = project.run(*verb)
        assert project.run("status").returncode == 0
        assert project.run("extract", "--dry-run").returncode == 0
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "mirstore forget demo" in line
    assert str(os.getpid()) in line
    assert project.run(*verb).returncode == 0


def told(process: subprocess.Popen[str], words: str) -> str:
    """What a process says up to a line with these words."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return "".join(lines)
    return pytest.fail(f"never said {words!r}, but {''.join(lines)}")


FINISHING = "Finishing the jobs in flight; Ctrl-C again abandons them."


def test_one_interrupt_finishes_the_jobs_in_flight(empty_project: Any, start: Any) -> None:
    fill(empty_project, 30, seconds=3.0)  # half of the work, so all of the first job
    fill(empty_project, 30, prefix="zz-held", seconds=2.0)
    process = start(held="zz-held")
    told(process, " of 60 songs")  # something is committed then
    press_ctrl_c(process)
    err = told(process, FINISHING)
    (empty_project.folder / "go on").touch()
    err += process.stderr.read()
    assert process.wait(HANG_S) == 130, err
    assert "Traceback" not in err
    assert err.count(FINISHING) == 1
    assert "run again" in process.stdout.read()
    store = empty_project.store
    done = len(store.tracks)
    assert 0 < done < 60
    assert any("zz-held" in track_id for track_id in store.tracks.index)
    assert store.unreferenced_parts == [], "a job in flight was not committed"
    before = empty_project.rows()
    report = empty_project.extract()
    assert report.songs == 60 - done
    assert not report.interrupted
    after = empty_project.rows()
    assert len({track_id for track_id, _ in after}) == 60
    assert {key: after[key] for key in before} == before


def test_two_interrupts_end_at_once(empty_project: Any, start: Any) -> None:
    fill(empty_project, 40, seconds=3.0)
    empty_project.add_song("zz-held.wav", seconds=0.5)  # in the last job, which never ends
    process = start(held="zz-held")
    told(process, " of 41 songs")
    process.terminate()  # as service managers and batch systems do, before they kill
    told(process, FINISHING)
    press_ctrl_c(process)
    process.stderr.read()
    assert process.wait(HANG_S) == 130
    store = empty_project.store
    done = len(store.tracks)
    assert 0 < done <= 40
    before = empty_project.rows()
    report = empty_project.extract()
    assert report.songs == 41 - done
    after = empty_project.rows()
    assert {key: after[key] for key in before} == before


def test_a_script_without_its_guard_is_told_so(empty_project: Any) -> None:
    empty_project.add_song("song.wav", seconds=0.5)
    script = empty_project.folder / "script.py"
    script.write_text("from pipeline import extract\nextract('catalog.yaml', workers=1)\n")
    done = subprocess.run(
        [sys.executable, script.name], cwd=script.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_workers_do_not_outlive_their_run(empty_project: Any, start: Any) -> None:
    """A kill of the main process alone, as the kernel does when memory is short."""
    psutil = pytest.importorskip("psutil")
    fill(empty_project, 10, seconds=3.0)
    empty_project.add_song("zz-held.wav", seconds=0.5)
    process = start(held="zz-held")
    main = psutil.Process(process.pid)
    workers: list[Any] = []
    while process.poll() is None:
        # A short-lived child may end between the listing and the look at it.
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = [c for c in main.children(recursive=True) if "spawn_main" in str(c.cmdline())]
        if workers and (empty_project.store_folder / "parts").exists():
            break
        pause(process, 0.02)
    assert workers
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=HANG_S)
    assert not alive
    report = empty_project.extract()
    assert report.failures == 0
    assert len(empty_project.store.tracks) == 11
    for part in set(empty_project.store.tracks["part"]):
        open_part(empty_project.store_folder, part)
