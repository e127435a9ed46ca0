"""Readers give what the store holds, once an epoch, resumable, in bounded memory."""

import gc
import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import FeatureStore
from pipeline.errors import StoreDamagedError, UnknownNameError
from training import ChunkReader, TrackReader
from training.batch_reader import BatchReader
from training.errors import ReaderError, ReaderStateError, TargetError

SMALL = 2**20  # bytes; 622 rows of log-mel and audio are 5.4 MB
# Fewer cores than workers are slow, not wrong.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mirstore read-ahead"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    if threads():  # looking for garbage takes long in a process of many tests
        gc.collect()
    assert threads() == []


def check_chunks(store: FeatureStore, reader: ChunkReader, batches: list[dict[str, torch.Tensor]]) -> None:
    """Compare every row with what the store itself gives."""
    whole = {
        name: {str(track_id): store[name].values(track_id) for track_id in reader.track_ids}
        for name in reader.settings["features"]
    }
    valid = {track_id: store.grid.valid_frames(int(n)) for track_id, n in store.tracks["n_samples"].items()}
    for batch in batches:
        for i in range(len(batch["track"])):
            track_id, chunk = str(reader.track_ids[batch["track"][i]]), int(batch["chunk"][i])
            assert int(batch["valid_frames"][i]) == valid[track_id][chunk]
            for name, values in whole.items():
                np.testing.assert_array_equal(batch[name][i].numpy(), values[track_id][chunk])


def every_chunk(store: FeatureStore) -> set[tuple[int, int]]:
    return {(track, chunk) for track, n in enumerate(store.spans.n_chunks) for chunk in range(n)}


def chunks_of(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, int]]:
    return [
        (int(track), int(chunk))
        for batch in batches
        for track, chunk in zip(batch["track"], batch["chunk"], strict=True)
    ]


def test_batches_have_a_size_where_none_is_named(known_store: FeatureStore) -> None:
    reader = ChunkReader(known_store, "logmel")
    first = next(iter(reader.loader()))
    assert (reader.batch_size, len(first["chunk"])) == (32, min(32, len(reader.chunks)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_chunks_are_those_of_the_store_each_once(known_store: FeatureStore, shuffle: bool) -> None:
    names = ["logmel", "audio"]
    reader = ChunkReader(known_store, names, batch_size=16, buffer_bytes=SMALL, shuffle=shuffle)
    batches = list(reader)
    assert 32 <= reader.capacity < 200 or not shuffle
    assert [len(batch["track"]) for batch in batches] == [16] * 38 + [14]
    assert {name: batches[0][name].dtype for name in names} == dict.fromkeys(names, torch.float32)
    check_chunks(known_store, reader, batches)
    seen = chunks_of(batches)
    assert len(seen) == 622
    assert set(seen) == every_chunk(known_store)
    stored_order = list(zip(reader.chunks.track.tolist(), reader.chunks.chunk.tolist(), strict=True))
    assert (seen == stored_order) is not shuffle
    assert [chunks for batch in reader.order() for chunks in batch.tolist()] == [
        stored_order.index(chunk) for chunk in seen
    ]


def test_stored_types_are_kept_if_asked(known_store: FeatureStore) -> None:
    reader = ChunkReader(known_store, ["audio", "logmel"], batch_size=64, as_stored=True)
    batch = next(iter(reader))
    assert (batch["audio"].dtype, batch["logmel"].dtype) == (torch.int16, torch.float16)
    for i in range(64):
        track_id, chunk = reader.track_ids[batch["track"][i]], int(batch["chunk"][i])
        for name in ("audio", "logmel"):
            stored = known_store[name].stored(track_id, chunk, chunk + 1)[0]
            np.testing.assert_array_equal(batch[name][i].numpy(), stored)


def test_only_selected_tracks_that_have_all_features_are_read(
    new_store: Callable[..., FeatureStore],
) -> None:
    store = new_store([[2, 3], [4, 1]], with_logmel=1)
    reader = ChunkReader(store, ["audio", "logmel"], batch_size=2)
    assert sorted(len(batch["track"]) for batch in reader) == [1, 2, 2]
    only = store.select(track_ids=["made/002"])
    reader = ChunkReader(only, "logmel", batch_size=9)
    (batch,) = reader
    assert [reader.track_ids[track] for track in batch["track"]] == ["made/002"] * len(batch["chunk"])
    with pytest.raises(ReaderError, match=r"no track .* has logmel"):
        ChunkReader(store.select(track_ids=["made/000"]), "logmel", batch_size=2)


def test_real_tracks_read_as_the_store_gives_them(project: Any) -> None:
    assert project.extract().failures == 0
    store = project.store
    names = ["logmel", "mfcc", "audio"]
    reader = ChunkReader(store, names, batch_size=4)
    batches = list(reader.loader())
    check_chunks(store, reader, batches)
    assert set(chunks_of(batches)) == every_chunk(store)
    tracks = TrackReader(store, names, batch_size=2)
    seen = 0
    for batch in tracks:
        for i, track in enumerate(batch["track"]):
            n_chunks, track_id = int(batch["n_chunks"][i]), tracks.track_ids[track]
            seen += n_chunks
            for name in names:
                np.testing.assert_array_equal(batch[name][i, :n_chunks].numpy(), store[name].values(track_id))
    assert seen == len(every_chunk(store))


@pytest.mark.parametrize("make", [ChunkReader, TrackReader])
def test_ranks_and_workers_share_an_epoch(known_store: FeatureStore, make: type[BatchReader]) -> None:
    seen: list[tuple[int, ...]] = []
    lengths = []
    for rank in range(3):
        reader = make(known_store, "logmel", batch_size=4, rank=rank, world_size=3)
        streams = [reader.batches(1, 0, worker, 2) for worker in range(2)]
        batches = [batch for stream in streams for batch in stream]
        lengths.append((len(batches), len(reader)))
        seen += chunks_of(batches)
        for stream in streams:
            stream.close()
    assert len(set(lengths)) == 1
    assert lengths[0][0] == lengths[0][1]
    assert len(set(seen)) == len(seen)
    everything = 622 if make is ChunkReader else 50
    assert len(seen) > everything - (3 if make is ChunkReader else 3 * 4)


@pytest.mark.parametrize("make", [ChunkReader, TrackReader])
def test_seed_and_epoch_are_the_order(known_store: FeatureStore, make: type[BatchReader]) -> None:
    def epoch(seed: int, number: int) -> list[dict[str, torch.Tensor]]:
        reader = make(known_store, "logmel", batch_size=8, seed=seed)
        reader.set_epoch(number)
        return list(reader)

    assert same(epoch(1, 2), epoch(1, 2))
    assert not same(epoch(1, 2), epoch(1, 3))
    assert not same(epoch(1, 2), epoch(2, 2))
    loader = make(known_store, "logmel", batch_size=8, seed=1).loader()
    assert same(list(loader), epoch(1, 0))
    assert same(list(loader), epoch(1, 1))
    loader.set_epoch(5)
    assert same(list(loader), epoch(1, 5))
    iter(loader)  # begun and left
    assert same(list(loader), epoch(1, 7))


READERS = {
    "chunks": lambda store: ChunkReader(store, ["logmel", "audio"], batch_size=16, buffer_bytes=SMALL),
    "stored order": lambda store: ChunkReader(store, "logmel", batch_size=16, shuffle=False),
    "tracks": lambda store: TrackReader(store, "logmel", batch_size=4, max_chunks=6),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_state_gives_the_rest_of_the_epoch(known_store: FeatureStore, kind: str) -> None:
    loader = READERS[kind](known_store).loader()
    whole = [list(loader), list(loader)]
    n_batches = len(loader)
    for stop in (0, 1, n_batches // 2, n_batches - 1, n_batches):
        loader = READERS[kind](known_store).loader()
        loader.set_epoch(0)
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = READERS[kind](known_store).loader()
        resumed.load_state_dict(state)
        if stop < n_batches:
            assert same(list(resumed), whole[0][stop:])
        assert same(list(resumed), whole[1])
        del batches


def test_resuming_reads_no_shard_that_is_used_up(new_store: Callable[..., FeatureStore]) -> None:
    store = new_store([[30], [30], [30]])
    reader = ChunkReader(store, "logmel", batch_size=10, shuffle=False)
    table = reader.chunks
    for part in table.parts[:2]:
        (shard,) = Path(str(store.location), "parts", part, store["logmel"].rows.arrays[part]).glob("c/0/*/*")
        shard.unlink()
    loader = reader.loader()
    loader.load_state_dict({**loader.state_dict(), "batches": 6})
    assert [len(batch["track"]) for batch in loader] == [10, 10, 10]
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batches": 5})
    with pytest.raises(StoreDamagedError, match="shard 0 is missing"):
        next(iter(loader))


def test_states_of_other_data_or_settings_are_refused(
    new_store: Callable[..., FeatureStore],
) -> None:
    store = new_store([[3, 4], [5]])

    def state(**changed: Any) -> dict[str, Any]:
        return ChunkReader(store, "logmel", **{"batch_size": 2, **changed}).loader().state_dict()

    loader = ChunkReader(store, "logmel", batch_size=2).loader()
    loader.load_state_dict(state())
    for wrong, message in (
        (state(batch_size=3), "saved with batch_size 3, this loader has 2"),
        (state(seed=1), "saved with seed 1, this loader has 0"),
        (state(rank=0, world_size=2), "world_size 2"),
        (state(as_stored=True), "as_stored True"),
        (state() | {"snapshot": 1}, r"snapshot=1\)"),
        (state() | {"num_workers": 3}, "num_workers 3"),
        (state() | {"chunks": ""}, "chunks"),
        (state() | {"batches": 6}, "batch 6 of epoch 0"),
        (state() | {"epoch": None}, "epoch None"),
        ({}, "not one of a batch loader"),
        (TrackReader(store, "logmel", batch_size=2).loader().state_dict(), "reader TrackReader"),
    ):
        with pytest.raises(ReaderStateError, match=message):
            loader.load_state_dict(wrong)
    # The order of whole tracks needs no number of workers: three made it so far, one goes on.
    songs = TrackReader(store, "logmel", batch_size=1)
    second = songs.order(0, num_workers=3)[1]
    resumed = songs.loader()
    resumed.load_state_dict(songs.loader(num_workers=3).state_dict() | {"batches": 1})
    np.testing.assert_array_equal(next(iter(resumed))["track"], second)
    # Any rank's state serves all.
    ranks = [ChunkReader(store, "logmel", batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    ranks[1].loader().load_state_dict(ranks[0].loader().state_dict())


def test_workers_give_the_order_told_and_resume(known_store: FeatureStore) -> None:
    """Two processes for an epoch, left and begun again, and a resumed one."""
    before = set(multiprocessing.active_children())
    reader = READERS["chunks"](known_store)
    order = reader.order(0, num_workers=2)
    table = reader.chunks
    loader = reader.loader(num_workers=2)
    whole = []
    for number, batch in enumerate(loader):
        whole.append(batch)
        np.testing.assert_array_equal(batch["track"], table.track[order[number]])
        np.testing.assert_array_equal(batch["chunk"], table.chunk[order[number]])
        if number == 24:
            state = loader.state_dict()
    check_chunks(known_store, reader, whole)
    assert set(chunks_of(whole)) == every_chunk(known_store)
    second = next(iter(loader))  # of the next epoch, left behind
    np.testing.assert_array_equal(second["track"], table.track[reader.order(1, num_workers=2)[0]])
    loader.load_state_dict(state)
    assert same(list(loader), whole[25:])
    assert len(set(multiprocessing.active_children()) - before) == 2
    loader.close()
    assert set(multiprocessing.active_children()) <= before
    # A loader of one's own gives the same.
    plain = DataLoader(reader, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert same(list(plain), list(reader))


def test_tracks_are_whole_and_padded(known_store: FeatureStore) -> None:
    reader = TrackReader(known_store, ["logmel"], chunks_per_batch=60)
    order, seen, padding = reader.order(), [], 0
    for batch, expected in zip(reader, order, strict=True):
        np.testing.assert_array_equal(batch["track"], expected)
        tracks, longest = batch["valid_frames"].shape
        assert tracks * longest <= 60
        assert longest == batch["n_chunks"].max()
        assert batch["logmel"].shape == (tracks, longest, 4, 8)
        for i in range(tracks):
            track_id, n_chunks = reader.track_ids[batch["track"][i]], int(batch["n_chunks"][i])
            seen.append(track_id)
            padding += longest - n_chunks
            values = known_store["logmel"].values(track_id)
            np.testing.assert_array_equal(batch["logmel"][i, :n_chunks].numpy(), values)
            assert not batch["logmel"][i, n_chunks:].any()
            valid = known_store.grid.valid_frames(int(known_store.tracks.loc[track_id, "n_samples"]))
            np.testing.assert_array_equal(batch["valid_frames"][i, :n_chunks], valid)
            assert not batch["valid_frames"][i, n_chunks:].any()
    assert sorted(seen) == list(known_store.tracks.index)
    assert padding < 0.2 * 622


@pytest.mark.parametrize("window", ["random", "start"])
def test_long_tracks_are_cut(known_store: FeatureStore, window: Any) -> None:
    reader = TrackReader(known_store, "logmel", batch_size=8, max_chunks=5, window=window)
    starts = []
    for batch in reader:
        for i in range(len(batch["track"])):
            track_id, n_chunks = reader.track_ids[batch["track"][i]], int(batch["n_chunks"][i])
            start = int(batch["chunk"][i])
            values = known_store["logmel"].values(track_id)
            assert n_chunks == min(5, len(values))
            assert start + n_chunks <= len(values)
            np.testing.assert_array_equal(
                batch["logmel"][i, :n_chunks].numpy(), values[start : start + n_chunks]
            )
            starts.append(start)
    assert (max(starts) > 0) is (window == "random")


def test_targets_come_with_their_tracks(known_store: FeatureStore) -> None:
    tracks = known_store.tracks
    for targets, dtype, expected in (
        ("mood", torch.int64, tracks["mood"]),
        (["mood", "valence"], torch.float32, tracks[["mood", "valence"]]),
        (tracks["valence"] > 3, torch.int64, tracks["valence"] > 3),
        (tracks[["mood"]].iloc[::-1], torch.int64, tracks[["mood"]]),
    ):
        for reader in (
            ChunkReader(known_store, "logmel", batch_size=32, targets=targets),
            TrackReader(known_store, "logmel", batch_size=8, targets=targets),
        ):
            for batch in reader:
                assert batch["target"].dtype == dtype
                ids = reader.track_ids[batch["track"].numpy()]
                np.testing.assert_allclose(batch["target"], expected.loc[ids].to_numpy(float), rtol=1e-6)


def test_missing_and_odd_targets_are_errors(known_store: FeatureStore) -> None:
    mood = known_store.tracks["mood"]
    gap = mood.astype(float)
    gap.loc["made/007"] = np.nan
    for targets, error, message in (
        (mood.drop("made/003"), TargetError, r"made/003: has no target 'mood' \(1 tracks"),
        (gap, TargetError, "made/007: has no target"),
        ("genre", TargetError, "'genre' is not of numbers .'folk' for made/000"),
        ("moood", UnknownNameError, "Did you mean 'mood'"),
        (pd.concat([mood, mood[:1]]), TargetError, "made/000: has several targets"),
        (mood / 0, TargetError, "made/000: has no target|is infinite"),
    ):
        with pytest.raises(error, match=message):
            ChunkReader(known_store, "logmel", batch_size=2, targets=targets)
    only = known_store.select(track_ids=["made/003"])
    ChunkReader(only, "logmel", batch_size=2, targets=mood[["made/003"]])  # the others need none
    known = pd.Series([1, True, 2.5], index=["a", "b", "c"], dtype=object)
    with pytest.raises(TargetError, match="made/000: has no target"):
        ChunkReader(known_store, "logmel", batch_size=2, targets=known)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": []}, "expected features"),
        ({"features": ["logmel", "logmel"]}, "each once"),
        ({"batch_size": 0}, "batch_size of 1 or more, got 0"),
        ({"batch_size": 400, "world_size": 2, "rank": 0, "drop_last": True}, "make no batch of 400"),
        ({"rank": 1}, "rank and world_size or neither"),
        ({"rank": 2, "world_size": 2}, "0 <= rank < world_size"),
        ({"seed": -1}, "seed of 0 or more"),
        ({"buffer_bytes": 10_000}, "buffer_bytes is 10,000, but batches of 16 need [0-9,]+. Raise it"),
    ],
)
def test_settings_that_cannot_be_are_errors(
    known_store: FeatureStore, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ReaderError, match=message) as caught:
        ChunkReader(known_store, **{"features": "logmel", "batch_size": 16, **settings})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "batch_size or chunks_per_batch, got neither"),
        ({"chunks_per_batch": 10}, "chunks_per_batch is 10. Raise it or set max_chunks"),
        ({"batch_size": 2, "max_chunks": 0}, "max_chunks of 1 or more"),
        ({"batch_size": 8, "buffer_bytes": 9_999}, "buffer_bytes is 9,999, but batches of up to"),
        ({"batch_size": 50, "rank": 0, "world_size": 2}, "50 tracks make no batch for each of 2"),
    ],
)
def test_settings_of_tracks_that_cannot_be_are_errors(
    known_store: FeatureStore, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ReaderError, match=message):
        TrackReader(known_store, "logmel", **settings)


@pytest.mark.parametrize("name", ["chunks", "tracks"])
def test_the_memory_an_error_names_is_enough(known_store: FeatureStore, name: str) -> None:
    def reader(buffer_bytes: int) -> BatchReader:
        make = ChunkReader if name == "chunks" else TrackReader
        return make(known_store, "logmel", batch_size=8, buffer_bytes=buffer_bytes)

    with pytest.raises(ReaderError) as caught:
        reader(1)
    needed = int(str(caught.value).split("need ")[1].split(".")[0].replace(",", ""))
    assert len(list(reader(needed))) == len(reader(needed))
    with pytest.raises(ReaderError):
        reader(needed // 2)


def test_damage_is_an_error_where_batches_are_taken(new_store: Callable[..., FeatureStore]) -> None:
    store = new_store([[40]])
    (part,) = store["logmel"].rows.arrays
    (shard,) = Path(str(store.location), "parts", part, store["logmel"].rows.arrays[part]).glob("c/0/*/*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 8] ^= 1
    shard.write_bytes(content)
    loader = ChunkReader(store, "logmel", batch_size=4, shuffle=False).loader()
    with pytest.raises(StoreDamagedError, match="checksum"):
        list(loader)


def test_leaving_early_ends_the_thread(known_store: FeatureStore) -> None:
    reader = ChunkReader(known_store, "logmel", batch_size=4)
    batches = iter(reader)
    next(batches)
    assert len(threads()) == 1
    del batches
    gc.collect()
    assert threads() == []
    stream = reader.batches(0)
    next(stream)
    stream.close()
    assert threads() == []
    assert list(stream) == []


def test_a_script_that_ends_in_mid_epoch_ends(known_store: FeatureStore) -> None:
    script = (
        "import sys; from pipeline import FeatureStore; from training import ChunkReader\n"
        "batches = iter(ChunkReader(FeatureStore(sys.argv[1]), 'logmel', batch_size=4)); next(batches)"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(known_store.location)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


PEAK = """
import os, re, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # a thread a core: as many on every machine
from pathlib import Path
from pipeline import FeatureStore
from training import ChunkReader, TrackReader

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

store, buffer_bytes = FeatureStore(sys.argv[1]), int(sys.argv[2])
warm = store.select(track_ids=["made/000"])
list(ChunkReader(warm, "logmel", batch_size=1, buffer_bytes=buffer_bytes))
before = peak()
rows = 0
for batch in ChunkReader(store, "logmel", batch_size=4, buffer_bytes=buffer_bytes):
    rows += len(batch["track"])
assert rows == len(store["logmel"].chunks)
print(peak() - before)
"""


def test_memory_keeps_to_what_was_stated(new_store: Callable[..., FeatureStore]) -> None:
    store = new_store([[75], [75], [1]], frames_per_chunk=512, n_mels=256, only="logmel")
    total = len(store["logmel"].chunks) * store["logmel"].rows.row_bytes
    grown = {}
    for mib in (10, 80):
        command = [sys.executable, "-c", PEAK, str(store.location), str(mib * 2**20)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        grown[mib] = int(done.stdout)
    assert total > 37 * 2**20  # what the large buffer holds for the most part, and the small one cannot
    for mib, growth in grown.items():
        assert growth < (mib + 12) * 2**20  # and a little for threads and the allocator
    assert grown[80] > 25 * 2**20
