"""Many machines: a Dask scheduler and workers in processes and folders of their own, some of them unfit."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import pipeline.workers
from pipeline.errors import ClusterError
from pipeline.fitness import own_needs, unfitness

ROOT = Path(__file__).parents[2]
SITE = Path(np.__file__).parents[1]
HANG_S = 300.0  # far past what anything here takes, on a slow and loaded machine too

# What good workers are told: songs whose name says so are marked, held once, or never done.
PRELOAD = """\
import os, pathlib, threading
import pipeline.jobs

def open_audio(path, *, genuine=pipeline.jobs.open_audio, **options):  # Dask may load this file twice
    path = pathlib.Path(path)
    marks = path.parents[1] / "marks"
    if marks.exists():
        held = "hold" in path.name and not list(marks.glob(path.name + "*"))
        (marks / f"{path.name} {os.getpid()}").touch()
        while held and not (marks / "go on").exists():
            threading.Event().wait(0.01)
    if path.name.startswith("hang"):
        threading.Event().wait()
    return genuine(path, **options)

pipeline.jobs.open_audio = open_audio
"""


def wait_until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives once it is true; fails if it never is."""
    for _ in range(int(HANG_S / 0.02)):
        if found := condition():
            return found
        threading.Event().wait(0.02)
    return pytest.fail("what was waited for never came")


class Machines:
    """A scheduler and workers, each a process in a folder and a process group of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        (folder / "preload.py").write_text(PRELOAD)
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--no-dashboard", **environment)
        assert self.scheduler.stderr is not None
        line = next(line for line in self.scheduler.stderr if "Scheduler at:" in line)
        self.address = line.split()[-1]
        self._reader = threading.Thread(target=self.scheduler.stderr.read, daemon=True)
        self._reader.start()
        self.client = Client(self.address, timeout=f"{HANG_S}s", set_as_default=False)

    def _start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        folder = self.folder / f"machine-{len(self._processes)}"
        folder.mkdir()
        flags = ["-S"] if environment.get("PYTHONPATH", "").endswith("bare") else []
        log = subprocess.PIPE if module == "dask_scheduler" else subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, *flags, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        self._processes.append(process)
        return process

    def start_worker(self, *, nanny: bool = True, **environment: str) -> subprocess.Popen[str]:
        """Start a worker; a good one unless `environment` says otherwise."""
        environment = environment or {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(self.folder / "preload.py")}
        options = ["--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
        return self._start(
            "dask_worker", self.address, *options, *([] if nanny else ["--no-nanny"]), **environment
        )

    def wait_for(self, n_workers: int) -> None:
        self.client.wait_for_workers(n_workers, timeout=HANG_S)

    def pids(self) -> set[int]:
        return set(self.client.run(os.getpid).values())

    def end(self, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # its scheduler may be gone
            self.client.close(timeout=1)
        for process in reversed(self._processes):
            self.end(process)
        self._reader.join()
        assert self.scheduler.stderr is not None
        self.scheduler.stderr.close()


@pytest.fixture
def start_machines(tmp_path: Path) -> Iterator[Callable[..., Machines]]:
    """Starter of a cluster of the test's own."""
    with contextlib.ExitStack() as stack:

        def begin(**environment: str) -> Machines:
            folder = tmp_path / "machines"
            folder.mkdir()
            machines = Machines(folder, **environment)
            stack.callback(machines.close)
            return machines

        yield begin


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler and two good workers that their nannies start again."""
    machines = Machines(tmp_path_factory.mktemp("machines"))
    machines.start_worker()
    machines.start_worker()
    machines.wait_for(2)
    yield machines
    machines.close()


@pytest.fixture
def marked(empty_project: Any) -> Any:
    """A project whose songs leave marks where good workers open them."""
    (empty_project.folder / "marks").mkdir()
    return empty_project


def marks(project: Any, name: str = "") -> list[tuple[str, int]]:
    """Song and process id of each opening of the songs whose name begins so."""
    found = [path.name.split() for path in (project.folder / "marks").glob(f"{name}*.wav *")]
    return [(song, int(pid)) for song, pid in found]


def add_songs(project: Any, n_songs: int) -> None:
    for number in range(n_songs):
        project.add_song(f"song{number:02}.wav", sample_rate=8000, seconds=2.0 + number / 10, seed=number)


def begin(project: Any, machines: Machines, **options: Any) -> "Future[Any]":
    """Start `extract` in another thread, which a failed test leaves behind."""
    from pipeline import extract

    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(extract(project.catalog, scheduler=machines.address, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def test_the_same_rows_as_at_home(project: Any, two_machines: Machines) -> None:
    project.extract()
    at_home = project.rows()
    shutil.rmtree(project.store_folder)
    report = project.run_json("extract", "--scheduler", two_machines.address)
    assert (report["songs"], report["failures"], report["refused_workers"]) == (6, 0, {})
    assert {int(pid) for pid in report["peak_bytes_by_worker"]} <= two_machines.pids()
    assert project.rows() == at_home
    assert project.store.unreferenced_parts == []


def test_a_worker_killed_in_mid_job(marked: Any, two_machines: Machines) -> None:
    add_songs(marked, 10)
    marked.add_song("hold.wav", seconds=9.0)  # the largest, so in the first job
    run = begin(marked, two_machines)
    [(_, pid)] = wait_until(lambda: marks(marked, "hold"))
    os.kill(pid, signal.SIGKILL)
    report = run.result(HANG_S)
    assert (report.songs, report.failures) == (11, 0)
    assert len(marks(marked, "hold")) == 2
    assert set(marked.store.tracks["status"]) == {"ok"}
    two_machines.wait_for(2)


def test_a_job_that_never_ends(marked: Any, two_machines: Machines) -> None:
    add_songs(marked, 6)
    marked.add_song("hang.wav", seconds=5.0)
    two_machines.wait_for(2)
    before = two_machines.pids()
    report = marked.run_json("extract", "--scheduler", two_machines.address, "--job-timeout", "5")
    assert (report["songs"], report["failures"]) == (6, 1)
    [failure] = marked.run_json("failures")["failed"]
    assert (failure["track_id"], failure["stage"]) == ("demo/hang.wav", "worker")
    assert failure["reason"] == "took longer than 5 s"
    hung = {pid for _, pid in marks(marked, "hang")}
    assert len(hung) == 2, "once among others and once alone"
    assert hung & before
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in hung))
    two_machines.wait_for(2)


def test_a_frozen_machine(marked: Any, start_machines: Any) -> None:
    """Nothing tells that it is gone but its silence."""
    machines = start_machines(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="5s")
    machines.start_worker()
    machines.start_worker()
    machines.wait_for(2)
    add_songs(marked, 6)
    marked.add_song("hold.wav", seconds=9.0)
    run = begin(marked, machines)
    [(_, pid)] = wait_until(lambda: marks(marked, "hold"))
    os.kill(pid, signal.SIGSTOP)
    report = run.result(HANG_S)
    assert (report.songs, report.failures) == (7, 0)
    assert pid not in report.peak_bytes_by_worker
    assert {other for _, other in marks(marked, "hold")} > {pid}


def other_version(folder: Path) -> dict[str, str]:
    """Where another version of mirstore is installed."""
    metadata = folder / "mirstore-0.0.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: mirstore\nVersion: 0.0.9\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def other_code(folder: Path) -> dict[str, str]:
    """Where the same version has a line more."""
    for package in ("features", "pipeline"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "features" / "framing.py").open("a") as file:
        file.write("# mended here\n")
    return {"PYTHONPATH": str(folder)}


def without_av(folder: Path) -> dict[str, str]:
    """Where the package av cannot be imported."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'av':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def without_mirstore(folder: Path) -> dict[str, str]:
    """Where all is installed but mirstore."""
    bare = folder / "bare"
    bare.mkdir(parents=True)
    for path in SITE.iterdir():
        if "mirstore" not in path.name:
            (bare / path.name).symlink_to(path)
    return {"PYTHONPATH": str(bare)}


UNFIT = {
    other_version: f"it has mirstore 0.0.9, this run is of {version('mirstore')}",
    other_code: "has other code than this run's",
    without_av: "the package av cannot be imported there",
    without_mirstore: "mirstore is not installed there",
}


def test_unfit_workers_are_named_and_not_used(marked: Any, tmp_path: Path, start_machines: Any) -> None:
    machines = start_machines()
    for environment in UNFIT:
        machines.start_worker(nanny=False, **environment(tmp_path / environment.__name__))
    machines.wait_for(len(UNFIT))
    add_songs(marked, 24)  # enough for more jobs than one worker is given at a time
    marked.add_song("hold.wav", seconds=9.0)

    # None is fit: one line.
    done = marked.run("extract", "--scheduler", machines.address, process=True)
    assert done.returncode == 2
    planned, line = done.stderr.splitlines()
    assert planned.startswith("25 songs to decode")
    assert line.startswith("mirstore: no worker can be used (tcp://127.0.0.1:")
    assert line.endswith("and 1 more). Mend them and run again.")
    assert sum(reason in line for reason in UNFIT.values()) == 3
    assert not (marked.store_folder / "parts").exists()

    # One fit worker comes, and during the run another.
    unfit = machines.pids()
    machines.start_worker(nanny=False)
    machines.wait_for(len(UNFIT) + 1)
    told: dict[str, str] = {}
    run = begin(marked, machines, on_refused=told.__setitem__)
    [(_, first)] = wait_until(lambda: marks(marked, "hold"))
    machines.start_worker(nanny=False)
    wait_until(lambda: {pid for _, pid in marks(marked, "song")} - {first})
    (marked.folder / "marks" / "go on").touch()
    report = run.result(HANG_S)
    assert (report.songs, report.failures) == (25, 0)
    assert told == report.refused_workers
    assert len(told) == len(UNFIT)
    for reason in UNFIT.values():
        assert sum(reason in words for words in told.values()) == 1
    used = set(report.peak_bytes_by_worker)
    assert len(used) == 2
    assert first in used
    assert not used & unfit

    # The command line names each in a line and does the rest.
    marked.add_song("song99.wav")
    done = marked.run("extract", "--scheduler", machines.address)
    assert done.returncode == 0
    assert done.stderr.count(" is not used: ") == len(UNFIT)
    assert "1 song," in done.stdout


def test_a_scheduler_without_mirstore(project: Any, tmp_path: Path, start_machines: Any) -> None:
    """It unpacks every job, so it needs mirstore as workers do."""
    machines = start_machines(**without_mirstore(tmp_path / "site"))
    machines.start_worker(nanny=False)
    machines.wait_for(1)
    done = project.run("extract", "--scheduler", machines.address)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "mirstore: the Dask scheduler cannot be used: mirstore is not installed there. "
        "Start it in the environment of its workers."
    )


def test_all_workers_or_the_scheduler_gone(
    marked: Any, start_machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.workers, "PATIENCE_S", 1.0)
    machines = start_machines()
    worker = machines.start_worker()
    machines.wait_for(1)
    add_songs(marked, 16)
    marked.add_song("zz-hold.wav", seconds=0.5)  # in the last job
    run = begin(marked, machines)
    wait_until(lambda: marks(marked, "zz-hold") and len(marked.store.tracks))
    machines.end(worker)
    with pytest.raises(ClusterError, match=r"no worker to use.*run again to go on"):
        run.result(HANG_S)
    done = set(marked.store.tracks.index)
    assert "demo/zz-hold.wav" not in done

    for path in (marked.folder / "marks").iterdir():
        path.unlink()
    machines.start_worker()
    machines.wait_for(1)
    run = begin(marked, machines)
    wait_until(lambda: marks(marked, "zz-hold"))
    machines.end(machines.scheduler)
    with pytest.raises(ClusterError, match="scheduler has gone"):
        run.result(HANG_S)
    assert set(marked.store.tracks.index) >= done
    assert marked.extract().failures == 0
    assert len(marked.store.tracks) == 17


def test_what_a_worker_must_see(project: Any, tmp_path: Path) -> None:
    project.extract()
    store = project.store_folder
    song = str(project.music / "long.ogg")
    needs = {**own_needs(), "store": str(store), "lock": (store / ".lock").read_bytes(), "files": [song]}
    assert unfitness(needs) is None
    assert "does not see the store" in str(unfitness({**needs, "store": str(tmp_path / "elsewhere")}))
    assert "does not see the store" in str(unfitness({**needs, "lock": b"another run's"}))
    assert unfitness({**needs, "files": [song, "/nowhere/a.ogg"]}) == "it cannot read /nowhere/a.ogg"
    packages = {**needs["packages"], "numpy==1.0": "numpy"}
    assert (
        unfitness({**needs, "packages": packages}) == f"it has numpy {np.__version__}, mirstore needs ==1.0"
    )


@pytest.mark.parametrize(("library", "grace_s"), [("CDLL", 3.0), ("PyDLL", 0.2)])
def test_native_code_that_never_returns(library: str, grace_s: float) -> None:
    """CDLL lets Python go on beside it, PyDLL holds its lock: only the first can be told of, within its grace."""
    script = (
        "import ctypes\n"
        "import pipeline.workers as w\n"
        f"w._GRACE_S = {grace_s}\n"
        "with w._time_limit(0.2, lambda: print('late', flush=True)):\n"
        f"    ctypes.{library}(None).pause()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == ("late\n" if library == "CDLL" else "")
