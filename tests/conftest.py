"""Synthetic songs, a project around them, stores of known rows, and one Dask cluster for all tests."""

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest import mock

# Before numpy or torch is imported: threads of arithmetic that wait leave the cores to those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pipeline import FeatureStore

# The same examples in every run, so that a commit passes or does not; --hypothesis-profile=search seeks new ones.
# How fast the machine is says nothing of the code.
settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "search", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

COMMAND = Path(sys.executable).with_name("mirstore")
HANG_S = 300.0  # far past what anything here takes, on a slow and loaded machine too
# One request at a time, once all of it is there: moto looks whether a conditional put may be done and does it in
# two steps, which is one step on S3.
S3_SERVER = """\
import io, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

served, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

def in_turn(environ, start_response):
    if length := int(environ.get("CONTENT_LENGTH") or 0):
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
    with turn:
        return list(served(environ, start_response))

run_simple("127.0.0.1", 0, in_turn, threaded=True, request_handler=MotoRequestHandler)
"""
# 64 frames are 1.37 s, so that songs of a few seconds have several chunks.
CATALOG = """\
version: 1
store: ./store
grid: {{hop_length: 256, frames_per_chunk: 64, min_tail_s: 0.5}}
collections:
{collections}
features:
{features}
"""
AUDIO = "audio: {kind: audio, sample_rate: 12000, dtype: int16}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_fft: 512, n_mels: 32}"
MFCC = "mfcc: {kind: mfcc, from: logmel, n_mfcc: 12}"
SONGS: dict[str, tuple[int, int, float]] = {  # sample rate in Hz, channels, seconds
    "eight.wav": (8_000, 1, 2.0),
    "long.ogg": (44_100, 2, 40.0),
    "native.flac": (12_000, 1, 9.7),
    "short.wav": (12_000, 1, 0.01),
    "sub/folder/mono.ogg": (22_050, 1, 6.3),
    "sub/stereo.wav": (48_000, 2, 1.0),
}


# What workers are told before they work: songs whose name begins as HELD says wait until there is a file "go on"
# beside their folder; others kill their worker.
PRELOAD = """\
import os, pathlib, signal, threading
import pipeline.jobs

def open_audio(path, *, genuine=pipeline.jobs.open_audio, **options):  # Dask may load this file twice
    path = pathlib.Path(path)
    if path.name.startswith("killer"):
        os.kill(os.getpid(), signal.SIGSEGV)
    while path.name.startswith(os.environ["HELD"]) and not (path.parents[1] / "go on").exists():
        threading.Event().wait(0.01)
    return genuine(path, **options)

pipeline.jobs.open_audio = open_audio
"""


def synthetic_song(*, sample_rate: int, channels: int, seconds: float, seed: int) -> np.ndarray:
    """A chord in noise, (sample, channel)."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in rng.uniform(80, 2000, 3))
    return (0.1 * chord[:, None] + 0.05 * rng.standard_normal((len(time), channels))).astype(np.float32)


def write_song(
    path: Path, *, sample_rate: int = 12_000, channels: int = 1, seconds: float = 3.0, seed: int = 0
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = synthetic_song(sample_rate=sample_rate, channels=channels, seconds=seconds, seed=seed)
    sf.write(path, samples, sample_rate)
    return path


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the synthetic songs; not to be changed."""
    folder = tmp_path_factory.mktemp("songs")
    for seed, (name, (sample_rate, channels, seconds)) in enumerate(SONGS.items()):
        write_song(folder / name, sample_rate=sample_rate, channels=channels, seconds=seconds, seed=seed)
    return folder


@pytest.fixture(scope="session")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File to which the S3 server writes a line for each request, before it answers."""
    return tmp_path_factory.mktemp("s3") / "requests.log"


@pytest.fixture(scope="session")
def s3(s3_log: Path) -> Iterator[str]:
    """Endpoint URL of an S3 server on this machine."""
    command = [sys.executable, "-c", S3_SERVER]
    with s3_log.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield _answering(server, s3_log)
        finally:
            server.terminate()


def _answering(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """Endpoint of a server that was started on any free port, once it can be connected to."""
    for _ in range(int(HANG_S / 0.05)):
        if announced := re.search(r"Running on (http://127\.0\.0\.1:(\d+))", log.read_text()):
            socket.create_connection(("127.0.0.1", int(announced[2])), timeout=HANG_S).close()
            return announced[1]
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()}")


def s3_environment(endpoint: str) -> dict[str, str]:
    """Variables with which this process and workers reach the S3 server."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an empty bucket of the S3 server, with the environment set to reach it."""
    for name, value in s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    with contextlib.closing(http.client.HTTPConnection(s3.removeprefix("http://"), timeout=HANG_S)) as server:
        server.request("PUT", f"/{name}")
        assert server.getresponse().status == 200
    return name


@pytest.fixture(scope="session")
def scheduler(s3: str) -> Iterator[str]:
    """Address of a Dask scheduler with two worker processes: starting one takes seconds.

    The workers, and those that Dask starts in their place, reach the S3 server.
    """
    from distributed import LocalCluster

    with LocalCluster(
        env=s3_environment(s3),
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
        host="127.0.0.1",
        silence_logs=50,
    ) as cluster:
        yield cluster.scheduler_address


@dataclass
class Project:
    """A catalog, its music and its store in one folder."""

    folder: Path
    scheduler: Callable[[], str]

    @property
    def catalog(self) -> Path:
        return self.folder / "catalog.yaml"

    @property
    def music(self) -> Path:
        return self.folder / "music"

    @property
    def store_folder(self) -> Path:
        return self.folder / "store"

    def write_catalog(self, *features: str, **collections: str) -> Path:
        """Write the catalog; without arguments audio, log-mel and MFCC of ./music as ``demo``."""
        places = collections or {"demo": "./music"}
        self.catalog.write_text(
            CATALOG.format(
                collections="\n".join(f"  {name}: {{path: {place}}}" for name, place in places.items()),
                features="\n".join(f"  {feature}" for feature in features or (AUDIO, LOGMEL, MFCC)),
            )
        )
        return self.catalog

    def add_song(self, name: str, **how: Any) -> Path:
        return write_song(self.music / name, **how)

    def extract(self, **options: Any) -> Any:
        """Extract through the Python side, on the tests' own cluster."""
        from pipeline import extract

        return extract(self.catalog, scheduler=self.scheduler(), **options)

    def plan(self, **options: Any) -> dict[str, tuple[str, str]]:
        """Action and reason of every track that has something to do."""
        from pipeline import plan_extraction

        records = plan_extraction(self.catalog, **options).to_records()
        return {str(row["track_id"]): (str(row["action"]), str(row["reason"])) for row in records}

    @property
    def store(self) -> Any:
        from pipeline import FeatureStore

        return FeatureStore(self.catalog)

    def run(
        self, *arguments: str, shared: bool = False, process: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line in the project's folder.

        `shared` uses the tests' own cluster. Importing everything anew takes a second, so it is run in this
        process unless `process` is set.
        """
        place = ["--scheduler", self.scheduler()] if shared else []
        line = [str(COMMAND), *arguments, *place]
        if process:
            return subprocess.run(
                line, cwd=self.folder, capture_output=True, text=True, check=False, timeout=HANG_S
            )
        from pipeline.commands import main

        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", line),
            pytest.raises(SystemExit) as left,
        ):
            main()
        return subprocess.CompletedProcess(line, int(left.value.code or 0), out.getvalue(), err.getvalue())

    def run_json(self, *arguments: str, shared: bool = False, process: bool = False) -> Any:
        """Parsed output of a command that succeeds; NaN is no JSON."""
        done = self.run(*arguments, "--json", shared=shared, process=process)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))

    def rows(self) -> dict[tuple[str, str], bytes]:
        """Bytes of every feature version of every track, as stored."""
        return stored_rows(self.store)


def stored_rows(store: Any) -> dict[tuple[str, str], bytes]:
    versions = store.arrays[["feature", "fingerprint"]].drop_duplicates().itertuples(index=False)
    found = {}
    for name, fingerprint in versions:
        feature = store[f"{name}@{fingerprint}"]
        for track_id in feature.tracks.index:
            found[track_id, f"{name}@{fingerprint}"] = feature.stored(track_id).tobytes()
    return found


@pytest.fixture(scope="session")
def project_in(request: pytest.FixtureRequest) -> Callable[[Path], Project]:
    """Maker of projects that outlive a test."""

    def made(folder: Path) -> Project:
        (folder / "music").mkdir(parents=True, exist_ok=True)
        return Project(folder, lambda: str(request.getfixturevalue("scheduler")))

    return made


@pytest.fixture
def empty_project(tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    """A project without songs."""
    project = Project(tmp_path, lambda: str(request.getfixturevalue("scheduler")))
    project.music.mkdir()
    project.write_catalog()
    return project


@pytest.fixture
def project(empty_project: Project, music: Path) -> Project:
    """A project with its own copy of the synthetic songs."""
    shutil.copytree(music, empty_project.music, dirs_exist_ok=True)
    return empty_project


def kill_group(process: "subprocess.Popen[str]") -> None:
    """Kill a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def start(empty_project: Project) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starter of ``mirstore extract`` in a process group of its own, which ends with the test.

    Songs whose name begins with `held` are waited for until there is a file ``go on`` in the project's folder.
    """
    begun = []
    preload = empty_project.folder / "preload.py"
    preload.write_text(PRELOAD)

    def begin(*arguments: str, held: str | None = None) -> "subprocess.Popen[str]":
        told = {} if held is None else {"HELD": held, "DASK_DISTRIBUTED__WORKER__PRELOAD": str(preload)}
        process = subprocess.Popen(
            [COMMAND, "extract", "--workers", "1", *arguments],
            cwd=empty_project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **told},
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        kill_group(process)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounter of small file systems: for full disks and read-only ones."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def written_store(
    folder: Path,
    parts: Sequence[Sequence[int]],
    *,
    frames_per_chunk: int = 8,
    n_mels: int = 4,
    with_logmel: int | None = None,
    only: str | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> "FeatureStore":
    """A store of random rows: for each part, the number of chunks of each of its tracks.

    Track ``made/000`` is the last written, so that stored order is not that of identifiers. Only the first
    `with_logmel` parts have log-mel; `only` one feature is written, if named. `more` are further definitions.
    """
    from features.framing import Grid
    from pipeline import FeatureStore
    from pipeline.definitions import AudioDefinition, LogMelDefinition, resolve
    from pipeline.store.index import Index
    from pipeline.store.lineage import provenance
    from pipeline.store.location import location_of
    from pipeline.store.parts import PartWriter
    from pipeline.store.records import TrackRow

    grid = Grid(frames_per_chunk=frames_per_chunk, min_tail_s=0.0)
    definitions = {
        "audio": AudioDefinition(kind="audio"),
        "logmel": LogMelDefinition.model_validate({"kind": "log_mel", "from": "audio", "n_mels": n_mels}),
        **more,
    }
    resolved = resolve(definitions, grid)
    features = [resolved[only]] if only else list(resolved.values())
    index = Index.create(folder, grid)
    rng = np.random.default_rng(0)
    number = sum(map(len, parts))
    for i, lengths in enumerate(parts):
        tracks, written = [], features if with_logmel is None or i < with_logmel else features[:1]
        computed = {feature.name: "{}" for feature in written}
        with PartWriter(location_of(folder), written, computed) as writer:
            for length in lengths:
                number -= 1
                n_samples = int(length * grid.chunk_samples - rng.integers(0, grid.chunk_samples))
                for _ in range(length):
                    for feature in written:
                        values = rng.standard_normal(feature.row_shape) * (
                            1 if feature.scale is None else 9e3
                        )
                        writer.append(feature.name, values.astype(feature.dtype))
                track_id = f"made/{number:03}"
                first = writer.add_track(track_id, grid.valid_frames(n_samples))
                tracks.append(
                    TrackRow(
                        track_id, "made", track_id, 1, 1, "ok", n_samples=n_samples, part=writer.part,
                        row_start=first, n_chunks=length,
                        labels=json.dumps({"mood": number % 3, "valence": number / 7, "genre": "folk"}),
                    )
                )  # fmt: skip
            arrays = writer.finish()
        index.commit(arrays=arrays, added=tracks, provenance=provenance("test"))
    return FeatureStore(folder)


@pytest.fixture(scope="session")
def known_store(tmp_path_factory: pytest.TempPathFactory) -> "FeatureStore":
    """50 tracks, 622 chunks, three parts, the first of three shards; not to be changed."""
    rng = np.random.default_rng(1)
    parts = [rng.integers(1, 30, 40).tolist(), [1, 2, 3], [5, 9, 3, 1, 1, 2, 4]]
    return written_store(tmp_path_factory.mktemp("known") / "store", parts)


@pytest.fixture
def new_store(tmp_path: Path) -> "Callable[..., FeatureStore]":
    """Maker of a store of one's own."""
    return lambda parts, **how: written_store(tmp_path / "store", parts, **how)


@pytest.fixture(scope="session")
def store_of_rows() -> "Callable[..., FeatureStore]":
    """Maker of stores of known rows that outlive a test: `written_store`."""
    return written_store
