"""A store in a bucket keeps the promises of one in a folder. The server is a process on this machine."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pandas as pd
import pytest
import xarray as xr
import zarr
from deltalake import DeltaTable

import pipeline.store.lease
from pipeline import FeatureStore
from pipeline.errors import (
    CatalogError,
    StoreAccessError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
    StoreWriteError,
)
from pipeline.store.bucket import Bucket
from pipeline.store.compaction import compact
from pipeline.store.erasures import DONE_FILES_KEPT, Erasure, Span, erased_spans
from pipeline.store.folder import Folder
from pipeline.store.garbage import collect_garbage
from pipeline.store.index import Index
from pipeline.store.lease import KEY
from pipeline.store.location import Location
from pipeline.store.removal import forget, prune
from pipeline.store.verification import verify

HANG_S = 300.0  # far past what anything here takes, on a slow and loaded machine too


@pytest.fixture
def url(bucket: str) -> str:
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def remote(empty_project: Any, url: str) -> Any:
    """A project whose store is in a bucket."""
    empty_project.catalog.write_text(empty_project.catalog.read_text().replace("./store", url))
    for number in range(6):
        empty_project.add_song(f"song{number}.wav", seconds=2.0 + 0.7 * number, seed=number)
    return empty_project


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Folder(tmp_path) if request.param == "folder" else Bucket(request.getfixturevalue("url"))


# Both kinds of location


def test_a_location_is_a_tree_of_keys(location: Location) -> None:
    for key, content in {"a/b": b"0123456789", "a/c/d": b"", "ab": b"x"}.items():
        location.write(key, content)
    assert location.read("a/b") == b"0123456789"
    assert location.read_range("a/b", 3, 4) == b"3456"
    assert location.read_range("a/b", 8, 40) == b"89"
    assert location.read_range("a/b", 8, 0) == b""
    assert location.read_end("a/b", 3) == b"789"
    assert location.read_end("a/b", 30) == b"0123456789"
    assert location.names("") == ["a", "ab"]
    assert location.names("a") == ["b", "c"]
    assert location.names("none") == []
    files = {stored.key: stored.size for stored in location.walk("a") if stored.size}
    assert files == {"a/b": 10}
    assert location.size("") == 11
    now = time.time()
    assert all(abs(stored.modified_s - now) < 60 for stored in location.walk(""))
    assert location.exists("a/b")
    assert not location.exists("a/x")
    location.delete("a")
    assert location.names("") == ["ab"], "a prefix ends at a slash"
    location.delete("ab")
    location.delete("never there")
    assert location.names("") == []
    for read in (
        location.read,
        lambda key: location.read_range(key, 0, 1),
        lambda key: location.read_end(key, 1),
    ):
        with pytest.raises(FileNotFoundError):
            read("a/b")
    assert pickle.loads(pickle.dumps(location)) == location  # noqa: S301


def test_written_piece_by_piece(location: Location) -> None:
    location.prepare()
    rng = np.random.default_rng(0)
    pieces = [rng.bytes(3 << 20) for _ in range(7)]  # more than two parts of an upload
    writer = location.writer("big")
    for piece in pieces:
        writer.write(piece)
    writer.close()
    assert location.read("big") == b"".join(pieces)
    abandoned = location.writer("other")
    abandoned.write(pieces[0])
    abandoned.abandon()


def test_one_writer_at_a_time(location: Location) -> None:
    with location.lock("one") as lock:
        lock.check()
        with pytest.raises(StoreLockedError, match="`one`"), location.lock("two"):
            pass
    with location.lock("three"):
        pass
    assert KEY not in location.names("")


# The lease


def holder(bucket: Bucket) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bucket.read(KEY))
    return content


def test_lock_of_another_machine_is_free_once_it_is_not_renewed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(url)
    monkeypatch.setattr(pipeline.store.lease, "LEASE_S", 3600.0)
    content = {"command": "mirstore gc", "pid": 1, "host": "elsewhere", "space": "elsewhere/1/1"}
    bucket.write(KEY, json.dumps(content).encode())
    with pytest.raises(StoreLockedError, match="process 1 on elsewhere"), bucket.lock("me"):
        pass
    assert holder(bucket) == content
    monkeypatch.setattr(pipeline.store.lease, "LEASE_S", -1.0)
    lease = pipeline.store.lease.Lease(bucket, "me")
    lease._take_over()
    assert holder(bucket)["command"] == "me"
    assert bucket.names("") == [KEY], "nothing else is left behind"


def test_lock_of_a_dead_process_here_is_free(url: str) -> None:
    bucket = Bucket(url)
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    with bucket.lock("mirstore extract"):
        content = holder(bucket)
    bucket.write(KEY, json.dumps({**content, "pid": int(ended.stdout)}).encode())
    with bucket.lock("next"):
        assert holder(bucket)["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"pid": "x"}'])
def test_lock_that_cannot_be_read_is_respected(url: str, content: bytes) -> None:
    bucket = Bucket(url)
    bucket.write(KEY, content)
    with pytest.raises(StoreLockedError, match="another command"), bucket.lock("me"):
        pass


def test_a_lease_is_renewed_and_its_loss_stops_commits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store.lease, "LEASE_S", 40.0)
    monkeypatch.setattr(pipeline.store.lease, "RENEWALS_A_LEASE", 1000)
    bucket = Bucket(url)
    index = Index.create(url, small_grid())
    with bucket.lock("one") as lock:
        index.lock = lock
        first = holder(bucket)["renewals"]
        wait_until(lambda: holder(bucket)["renewals"] > first + 2)
        lock.check()
        index.commit(provenance={})
        bucket.write(KEY, b'{"command": "thief", "pid": 2, "host": "elsewhere"}')
        wait_until(lambda: refuses(lock.check))
        version = Index(url).version
        with pytest.raises(StoreLockedError, match="run again"):
            index.commit(provenance={})
        assert Index(url).version == version
    assert holder(bucket)["command"] == "thief", "another's lock is not deleted"


def test_of_many_at_once_one_gets_the_lock(url: str) -> None:
    bucket = Bucket(url)
    inside, tried = threading.Semaphore(0), threading.Barrier(8)
    got: list[int] = []

    def contend(number: int) -> None:
        tried.wait()
        with contextlib.suppress(StoreLockedError), Bucket(url).lock(str(number)):
            got.append(number)
            inside.acquire(timeout=HANG_S)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(thread.is_alive() for thread in threads) == 1)
    assert len(got) == 1
    inside.release()
    for thread in threads:
        thread.join()
    assert bucket.names("") == []


def small_grid() -> Any:
    from features.framing import Grid

    return Grid(frames_per_chunk=64, min_tail_s=0.5)


def refuses(check: Callable[[], None]) -> bool:
    try:
        check()
    except StoreLockedError:
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < HANG_S, "waited too long"
        time.sleep(0.01)


# A store's life


def test_extract_rerun_and_read(remote: Any, url: str, s3_log: Path) -> None:
    assert remote.extract().songs == 6
    log = s3_log.stat().st_size
    report = remote.extract()
    assert (report.songs, report.computed) == (0, 0)
    requests = s3_log.read_text()[log:]
    assert "GET" in requests
    assert "audio@" not in requests, "a run with nothing to do reads no feature"
    in_bucket = remote.rows()
    # A folder with the same catalog gets the same bytes.
    remote.catalog.write_text(remote.catalog.read_text().replace(url, "./store"))
    remote.extract()
    assert remote.rows() == in_bucket
    store = FeatureStore(url)
    assert len(store.tracks) == 6
    assert store["logmel"].track("demo/song3.wav").dims == ("chunk", "mel", "frame")
    assert store["logmel"].array(order="stored").compute().shape == (len(store["logmel"].chunks), 32, 64)
    assert verify(url).is_sound


def test_others_can_read_it(remote: Any, bucket: str, url: str) -> None:
    remote.extract()
    store = remote.store
    tracks = DeltaTable(f"{url}/tracks").to_pandas()
    assert set(tracks["track_id"]) == set(store.tracks.index)
    row = tracks[tracks["track_id"] == "demo/song2.wav"].iloc[0]
    plain = zarr.storage.ObjectStore(obstore.store.from_url(f"{url}/parts/{row['part']}"), read_only=True)
    part = xr.open_zarr(plain, consolidated=False)
    array = store["logmel"].rows.arrays[row["part"]]
    rows = part[array].isel(chunk=slice(row["row_start"], row["row_start"] + row["n_chunks"]))
    np.testing.assert_array_equal(rows.values, store["logmel"].stored("demo/song2.wav"))


def test_new_version_from_the_cache_and_upkeep(remote: Any, url: str) -> None:
    remote.extract()
    before = remote.rows()
    first = FeatureStore(url).snapshot
    text = remote.catalog.read_text()
    remote.catalog.write_text(text + "  tall: {kind: log_mel, from: audio, n_mels: 48}\n")
    for name in ("song0.wav", "song2.wav"):
        (remote.music / name).unlink()
    assert remote.extract().computed == 6
    both = remote.rows()
    assert both.items() > before.items()
    assert prune(url).tracks == ("demo/song0.wav", "demo/song2.wav")
    for number in range(DONE_FILES_KEPT):
        Erasure(
            f"erased/{number:032x}.json", (Span("p", number, 1),), blocked=(f"{number}",), done=True
        ).write(Bucket(url))
    forget(url, ["demo/song1.wav"])
    assert len(Bucket(url).names("erased")) == 1
    assert {("p", number) for number in range(DONE_FILES_KEPT)} < erased_spans(Bucket(url))
    report = compact(url, least_live=1.0)
    assert report.rewritten > 0
    gone = {"demo/song0.wav", "demo/song1.wav", "demo/song2.wav"}
    left = {key: rows for key, rows in both.items() if key[0] not in gone}
    assert remote.rows() == left
    past = FeatureStore(url).at(first)
    assert set(past.tracks.index) == {f"demo/song{n}.wav" for n in (0, 2, 3, 4, 5)}
    assert past["logmel"].stored("demo/song0.wav").tobytes() == next(
        rows for key, rows in before.items() if key[0] == "demo/song0.wav" and key[1].startswith("logmel")
    )
    Bucket(url).write("parts/orphan/audio@x/c/0/0", bytes(100))
    assert "orphan" not in {orphan.name for orphan in collect_garbage(url) if orphan.removed}
    removed = {orphan.name for orphan in collect_garbage(url, grace_s=0, keep_s=0)}
    assert "orphan" in removed
    assert len(removed) > report.rewritten
    assert remote.rows() == left
    assert verify(url).is_sound
    assert set(Bucket(url).names("parts")) == set(FeatureStore(url).arrays["part"])
    with pytest.raises(StoreError, match="can no longer be read"):
        FeatureStore(url).at(first)


def kill_group(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_kill_and_resume(remote: Any, url: str, start: Any) -> None:
    for number in range(14):
        remote.add_song(f"more{number:02}.wav", seconds=4.0, seed=100 + number)
    remote.add_song("zz-held.wav", seconds=0.5)  # in the last job, which never ends
    process = start(held="zz-held")
    wait_until(lambda: n_tracks(url) > 0 or process.poll() is not None)
    kill_group(process)
    seen = n_tracks(url)
    assert 0 < seen < 21
    assert Bucket(url).exists(KEY), "a killed command cannot give its lock back"
    kept = remote.rows()
    done = start()
    assert done.wait(HANG_S) == 0, done.stderr.read()
    assert n_tracks(url) == 21
    after = remote.rows()
    assert kept.items() <= after.items()
    assert verify(url).is_sound
    assert not Bucket(url).exists(KEY)


def n_tracks(url: str) -> int:
    try:
        return len(Index(url).tracks(["track_id"]))
    except StoreError:
        return 0


def test_two_writers(remote: Any, url: str) -> None:
    remote.extract()
    with Bucket(url).lock("mirstore extract"):
        done = remote.run("gc")
        assert done.returncode == 2
        assert "`mirstore extract`" in done.stderr
        assert done.stderr.count("\n") == 1
    assert remote.run("gc").returncode == 0


def test_two_commands_at_once(remote: Any, url: str, start: Any) -> None:
    """The first is stopped while it holds the lock, so that the second meets it for certain."""
    first = start()
    wait_until(lambda: Bucket(url).exists(KEY) or first.poll() is not None)
    os.killpg(first.pid, signal.SIGSTOP)
    second = start()
    _, told = second.communicate(timeout=HANG_S)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert "is being written by `mirstore extract --workers 1`" in told
    _, told = first.communicate(timeout=HANG_S)
    assert first.returncode == 0, told
    assert n_tracks(url) == 6
    assert verify(url).is_sound


# What can be wrong


def test_no_such_store_and_no_such_bucket(remote: Any, url: str, bucket: str) -> None:
    with pytest.raises(StoreMissingError, match="mirstore extract"):
        FeatureStore(url)
    remote.catalog.write_text(remote.catalog.read_text().replace(bucket, "no-such-bucket-here"))
    done = remote.run("extract", "--workers", "1")
    assert done.returncode == 2
    assert "no such bucket" in done.stderr
    assert done.stderr.count("\n") == 1


def test_place_that_does_not_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreAccessError, match="AWS_ALLOW_HTTP=true"):
        FeatureStore(url)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://key:secret@bucket/prefix", "credentials"),
        ("s3:///prefix", "expected s3://bucket/prefix"),
        ("s3://bucket/prefix?x=1", "expected s3://bucket/prefix"),
        ("ftp://user:secret@host/prefix", "not ftp://"),
    ],
)
def test_places_that_are_refused(place: str, words: str) -> None:
    with pytest.raises(CatalogError, match=words) as caught:
        FeatureStore(place)
    assert "secret" not in str(caught.value)


def test_index_in_pandas(remote: Any, url: str) -> None:
    remote.extract()
    table = DeltaTable(f"{url}/arrays").to_pyarrow_table().to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert set(table["feature"]) == {"audio", "logmel", "mfcc"}


def test_refusal_to_write(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreWriteError, match="AWS_ALLOW_HTTP"):
        remote.extract()


def test_worker_without_credentials_is_named_and_not_used(remote: Any, s3: str) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        env={"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_ENDPOINT_URL": s3}
        | {"AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "false"},
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
        silence_logs=50,
    ) as cluster:
        done = remote.run("extract", "--scheduler", cluster.scheduler_address)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("mirstore: no worker can be used (tcp://127.0.0.1:")
    assert "cannot read s3://" in line
