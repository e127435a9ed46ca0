"""Many tracks at once: selections, tables of chunks, dask arrays and datasets whose blocks are the shards."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pipeline import FeatureStore, nearest_tracks
from pipeline.definitions import CnnDefinition, LogMelDefinition
from pipeline.errors import StoreError, UnknownNameError
from pipeline.labels import add_labels
from pipeline.store.chunk_table import ChunkTable, chunk_table, read_chunks
from pipeline.store.compaction import compact
from pipeline.store.folder import Folder
from pipeline.store.removal import forget
from pipeline.store.shard_reader import ShardReader

ROWS_PER_SHARD = {"audio": 128, "logmel": 256}


class Watched(Folder):
    """A folder that counts what is read of shards."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.n_reads = 0

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.n_reads += 1
        return super().read_range(key, start, length)

    def read_end(self, key: str, length: int) -> bytes:
        self.n_reads += 1
        return super().read_end(key, length)


def sent(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


def of_zarr(store: FeatureStore, name: str, part: str) -> np.ndarray:
    """All rows of a part, dead ones too, by zarr-python."""
    return _of_zarr(store.location.path / "parts" / part / store[name].rows.arrays[part])


@cache
def _of_zarr(folder: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(folder, mode="r")[:])


def live_rows(tracks: pd.DataFrame, per_shard: int) -> list[tuple[str, int, list[int]]]:
    """Part, shard and rows of it that tracks own, in order."""
    rows = sorted(
        (track.part, row)
        for track in tracks.itertuples()
        for row in range(track.row_start, track.row_start + track.n_chunks)
    )
    shards: dict[tuple[str, int], list[int]] = {}
    for part, row in rows:
        shards.setdefault((part, row // per_shard), []).append(row)
    return [(part, shard, numbers) for (part, shard), numbers in shards.items()]


def in_stored_order(store: FeatureStore, name: str) -> np.ndarray:
    """What an array of all tracks must hold, by zarr-python."""
    found = [
        of_zarr(store, name, part)[rows]
        for part, _, rows in live_rows(store[name].tracks, ROWS_PER_SHARD[name])
    ]
    return np.concatenate(found)


# The table of chunks


def test_the_table_has_every_chunk_once(known_store: FeatureStore) -> None:
    expected = []
    for track_id, row in known_store.tracks.sort_values(["part", "row_start"]).iterrows():
        n_frames = 1 + row["n_samples"] // 256
        expected += [
            (track_id, chunk, min(8, n_frames - 8 * chunk), row["part"], row["row_start"] + chunk)
            for chunk in range(row["n_chunks"])
        ]
    frame = chunk_table([known_store["audio"], known_store["logmel"]]).to_frame()
    assert list(frame) == ["track_id", "chunk", "valid_frames", "part", "row"]
    assert list(frame.itertuples(index=False, name=None)) == expected
    in_order = known_store["logmel"].chunks.in_track_order().to_frame()
    assert list(in_order.itertuples(index=False, name=None)) == sorted(expected)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=40), st.integers(1, 9))
def test_blocks_are_the_longest_stretches_of_one_shard(places: list[tuple[int, int]], per_shard: int) -> None:
    part, row = np.array(places, dtype=np.int32).reshape(-1, 2).T
    none = np.zeros(len(row), dtype=np.int32)
    table = ChunkTable(pd.Index(["a"]), ("p", "q", "r"), part, row, none, none, none)
    bounds = table.blocks(per_shard)
    shards = [(p, r // per_shard) for p, r in places]
    borders = [0, *(i for i in range(1, len(shards)) if shards[i] != shards[i - 1])]
    assert bounds.tolist() == ([*borders, len(shards)] if shards else [0])


@given(st.data())
@settings(max_examples=40)
def test_any_chunks_in_any_order_are_read(known_store: FeatureStore, data: Any) -> None:
    feature = known_store["logmel"]
    whole = np.concatenate([of_zarr(known_store, "logmel", part) for part in feature.chunks.parts])
    numbers = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=30)), dtype=np.int64)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(numbers))] * 2)))
    table = feature.chunks.taken(numbers)
    assert_array_equal(read_chunks(feature.rows, table, start, stop), whole[numbers[start:stop]])
    out = np.empty((stop - start, *feature.row_shape), dtype=feature.dtype)
    assert read_chunks(feature.rows, table, start, stop, out) is out
    assert_array_equal(out, whole[numbers[start:stop]])


# Dask


@pytest.mark.parametrize("name", ["audio", "logmel"])
def test_blocks_in_stored_order_are_shards(known_store: FeatureStore, name: str) -> None:
    array = known_store[name].array(order="stored")
    sizes = tuple(len(rows) for _, _, rows in live_rows(known_store.tracks, ROWS_PER_SHARD[name]))
    assert array.chunks == (sizes, *((length,) for length in known_store[name].row_shape))
    assert (array.dtype, len(sizes) > 3) == (known_store[name].dtype, True)
    expected = in_stored_order(known_store, name)
    assert_array_equal(array.compute(scheduler="threads", num_workers=4), expected)
    assert_array_equal(array[130:300, 1].compute(scheduler="synchronous"), expected[130:300, 1])


@pytest.mark.parametrize("n_parts", [1, 3])
def test_blocks_in_track_order_are_tracks(new_store: Callable[..., FeatureStore], n_parts: int) -> None:
    store = new_store([[3, 1, 200, 100, 2]] * n_parts)
    array = store["logmel"].array()
    assert array.chunks[0] == tuple(store.tracks["n_chunks"])
    stacked = np.concatenate([store["logmel"].stored(track_id) for track_id in store.tracks.index])
    assert_array_equal(array.compute(scheduler="threads"), stacked)


def test_the_cluster_computes_the_same(known_store: FeatureStore, scheduler: str) -> None:
    from distributed import Client

    with Client(scheduler) as client:
        for order in ("stored", "track"):
            array = known_store["logmel"].array(order=order)
            values = client.compute(array, sync=True)
            assert_array_equal(values, array.compute(scheduler="synchronous"))
        means = known_store.select(mood=1).dataset(["audio", "logmel"])["logmel"].mean(("mel", "frame"))
        expected = in_stored_order(known_store.select(mood=1), "logmel").mean(axis=(1, 2))
        np.testing.assert_allclose(client.compute(means, sync=True), expected, atol=2e-3)


def test_a_task_carries_its_own_block_only(new_store: Callable[..., FeatureStore]) -> None:
    """However many tracks and parts the store has: each task goes to a worker by itself."""
    store = new_store([[1] * 400] * 4, frames_per_chunk=1, n_mels=1)
    for order in ("stored", "track"):
        graph = dict(store["logmel"].array(order=order).__dask_graph__())
        assert max(len(cloudpickle.dumps(task)) for task in graph.values()) < 4096


def test_nothing_is_read_before_it_is_computed(known_store: FeatureStore) -> None:
    place = Watched(known_store.location.path)
    store = FeatureStore(place)
    array, dataset = store["logmel"].array(order="stored"), store.dataset(["audio", "logmel"])
    in_order, chosen = store["audio"].array(), store.select(mood=1)["logmel"].array()
    assert place.n_reads == 0
    array[:2].compute(scheduler="synchronous")
    assert place.n_reads == 2  # the index of one shard, and its rows
    in_second = dataset["audio"].chunks[0][0]
    dataset["audio"][in_second : in_second + 2].compute(scheduler="synchronous")
    assert place.n_reads == 4
    assert in_order.shape[0] > chosen.shape[0] > 0


def test_dead_rows_are_in_no_block(new_store: Callable[..., FeatureStore]) -> None:
    store = new_store([[100, 50, 1, 120, 30, 60], [2, 3]])
    before = {name: store["logmel"].stored(name) for name in store.tracks.index}
    dead = ["made/006", "made/004", "made/001"]  # in the middle of a shard, across a border, of a small part
    forget(store.location, dead)
    for compacted in (False, True):
        if compacted:
            compact(store.location)
        left = FeatureStore(store.location)
        assert set(left.tracks.index) == set(before) - set(dead)
        array = left["logmel"].array(order="stored")
        sizes = [len(rows) for _, _, rows in live_rows(left.tracks, 256)]
        assert array.chunks[0] == tuple(sizes)
        stacked = [before[name] for name in left.tracks.sort_values(["part", "row_start"]).index]
        assert_array_equal(array.compute(scheduler="threads"), np.concatenate(stacked))
        in_order = np.concatenate([before[name] for name in left.tracks.index])
        assert_array_equal(left["logmel"].array().compute(scheduler="threads"), in_order)


def test_there_are_two_orders(known_store: FeatureStore) -> None:
    with pytest.raises(StoreError, match="expected the order 'track' or 'stored', got 'tracks'"):
        known_store["logmel"].array(order="tracks")


def test_no_tracks_are_an_empty_array(known_store: FeatureStore) -> None:
    nothing = known_store.select(track_ids=[])
    for order in ("stored", "track"):
        array = nothing["logmel"].array(order=order)
        assert array.compute(scheduler="synchronous").shape == (0, 4, 8)
        assert array.dtype == np.float16
    assert nothing.dataset(["audio", "logmel"]).load(scheduler="synchronous").sizes["chunk"] == 0


# Datasets


def test_a_dataset_has_the_tracks_that_have_all_features(new_store: Callable[..., FeatureStore]) -> None:
    taller = LogMelDefinition.model_validate({"kind": "log_mel", "from": "audio", "n_mels": 6})
    store = new_store([[3, 130, 200], [2, 5], [4]], with_logmel=2, more={"taller": taller})
    covered = store["logmel"].tracks
    assert set(store.tracks.index) - set(covered.index) == {"made/000"}
    dataset = store.dataset(["taller", "audio", "logmel"])
    assert dict(dataset.sizes) == {"chunk": 340, "mel": 6, "mel_4": 4, "frame": 8, "sample": 2048}
    assert dataset["logmel"].dims == ("chunk", "mel_4", "frame")
    loaded = dataset.load(scheduler="threads")
    for name in ("audio", "logmel"):
        expected = in_stored_order(store.select(track_ids=list(covered.index)), name)
        assert_array_equal(loaded[name], expected)
    row = store.tracks.loc["made/004"]
    mine = loaded.isel(chunk=loaded["track_id"].values == "made/004")
    assert_array_equal(mine["taller"], store["taller"].stored("made/004"))
    np.testing.assert_allclose(mine["start_s"], np.arange(row["n_chunks"]) * 2048 / 12_000)
    assert int(mine["valid_frames"].sum()) == 1 + row["n_samples"] // 256
    assert loaded["logmel"].attrs["fingerprint"] == store["logmel"].fingerprint
    # The default is every track that has it.
    assert store.dataset(["audio"]).sizes["chunk"] == 344
    with pytest.raises(StoreError, match="at least one feature"):
        store.dataset([])


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, project_in: Callable[[Path], Any]) -> FeatureStore:
    """Two songs; two versions of ``logmel``, of 32 and of 16 bands, and ``slaney`` of 32 other bands."""
    project = project_in(tmp_path_factory.mktemp("versions"))
    project.add_song("one.wav", seconds=3.0)
    project.add_song("two.wav", seconds=1.6, seed=1)
    logmel = "logmel: {kind: log_mel, from: audio, n_mels: %d}"
    for n_mels in (32, 16):
        slaney = "slaney: {kind: log_mel, from: audio, n_mels: 32, htk: false}"
        project.write_catalog("audio: {kind: audio}", logmel % n_mels, slaney)
        project.extract()
    store: FeatureStore = project.store
    return store


def version_of(store: FeatureStore, n_mels: int) -> str:
    of_32 = store.arrays["row_shape"].str.startswith(f"[{n_mels},")
    [fingerprint] = store.arrays[of_32 & (store.arrays["feature"] == "logmel")]["fingerprint"].unique()
    return f"logmel@{fingerprint}"


def test_versions_of_a_feature_stand_side_by_side(versions: FeatureStore) -> None:
    names = [version_of(versions, 32), version_of(versions, 16)]
    dataset = versions.dataset(names).load(scheduler="synchronous")
    assert list(dataset.data_vars) == names
    aligned = versions.aligned("demo/one.wav", names)
    assert list(aligned.data_vars) == names
    for name, n_mels in zip(names, (32, 16), strict=True):
        stored = [versions[name].stored(f"demo/{song}.wav") for song in ("one", "two")]
        of_one = dataset[name][dataset["track_id"].values == "demo/one.wav"]
        assert_array_equal(of_one, stored[0])
        assert dataset[name].shape[0] == sum(map(len, stored))
        assert aligned[name].shape == (len(stored[0]), n_mels, 64)
        assert_array_equal(aligned[name], stored[0])


def test_aligned_features_keep_their_own_bands(versions: FeatureStore) -> None:
    names = ["audio", version_of(versions, 32), "slaney", "logmel"]
    for order in (names, names[::-1]):
        for masked in (False, True):
            aligned = versions.aligned("demo/one.wav", order, masked=masked)
            assert list(aligned.data_vars) == order
            for name in order:
                single = versions[name].track("demo/one.wav", masked=masked)
                assert_array_equal(aligned[name], single)
                if name != "audio":
                    assert_array_equal(aligned[aligned[name].dims[1]], single["mel"])
                    assert aligned[name].dims[::2] == ("chunk", "frame")
            np.testing.assert_allclose(aligned["start_s"], [0.0, 64 * 256 / 12_000])
    assert isinstance(aligned, xr.Dataset)


# Selections


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, store_of_rows: Any) -> FeatureStore:
    """Twelve tracks with `mood` 0 to 2, `valence` number / 7, `genre` folk; `tempo` of every fourth only."""
    store: FeatureStore = store_of_rows(tmp_path_factory.mktemp("labelled") / "store", [[3, 1] * 4, [2] * 4])
    tempo = pd.DataFrame(
        {
            "track_id": [f"made/{number:03}" for number in range(0, 12, 4)],
            "tempo": [90.5, 120.0, 60.0],
            "who": ["Ada", "Bo", "Ada"],
        }
    )
    add_labels(store.location, tempo)
    return FeatureStore(store.location)


SELECTIONS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, list(range(12))),
    ({"collection": "made"}, list(range(12))),
    ({"collection": ["made", "other"]}, list(range(12))),
    ({"mood": 1}, [1, 4, 7, 10]),
    ({"mood": [0, 1]}, [0, 1, 3, 4, 6, 7, 9, 10]),
    ({"mood": np.array([0, 1])}, [0, 1, 3, 4, 6, 7, 9, 10]),
    ({"mood": range(2)}, [0, 1, 3, 4, 6, 7, 9, 10]),
    ({"mood": 1, "genre": "folk"}, [1, 4, 7, 10]),
    ({"mood": 1, "genre": "rock"}, []),
    ({"valence": 3 / 7}, [3]),
    ({"tempo": 120}, [4]),
    ({"tempo": [60.0, 90.5]}, [0, 8]),
    ({"who": "Ada"}, [0, 8]),
    ({"who": "Ada", "query": "tempo > 80"}, [0]),
    ({"query": "tempo.isna()"}, [1, 2, 3, 5, 6, 7, 9, 10, 11]),
    ({"query": "valence >= 1 and mood != 0"}, [7, 8, 10, 11]),
    ({"query": "n_chunks == 3", "collection": "made", "mood": 0}, [9]),
    ({"query": "tempo > 1000"}, []),
    ({"track_ids": ["made/005", "made/002"]}, [2, 5]),
    ({"track_ids": pd.Index(["made/005", "made/002", "made/005"])}, [2, 5]),
    ({"track_ids": "made/005"}, [5]),
    ({"track_ids": ["made/005", "made/004"], "mood": 1}, [4]),
]


@pytest.mark.parametrize(("how", "numbers"), SELECTIONS)
def test_a_selection_is_all_that_is_seen(
    labelled: FeatureStore, how: dict[str, Any], numbers: list[int]
) -> None:
    chosen = labelled.select(**how)
    names = [f"made/{number:03}" for number in numbers]
    for store in (chosen, sent(chosen), chosen.select(), chosen.at(chosen.snapshot)):
        assert list(store.tracks.index) == names
        assert list(store.spans.track_ids) == names
        assert [store.number(name) for name in names] == list(range(len(names)))
        assert list(store["logmel"].tracks.index) == names
        assert list(store.given_labels.index) == names
    n_chunks = int(labelled.tracks.loc[names, "n_chunks"].sum())
    assert chosen["logmel"].array().shape[0] == len(chosen["audio"].chunks) == n_chunks
    assert chosen.dataset(["audio", "logmel"]).sizes["chunk"] == n_chunks
    for name in set(labelled.tracks.index) - set(names):
        with pytest.raises(UnknownNameError, match=f"no track '{name}'"):
            chosen["logmel"].stored(name)
    assert len(labelled.tracks) == 12


def test_a_query_sees_the_callers_variables(labelled: FeatureStore) -> None:
    slowest = 100  # noqa: F841  # pandas finds it
    assert list(labelled.select("tempo < @slowest").tracks["tempo"]) == [90.5, 60.0]
    with pytest.raises(StoreError, match="cannot select by"):
        labelled.select("tempo < @tracks")  # no variable of the library's own


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"collection": "mad"}, UnknownNameError, "no collection 'mad'. Did you mean 'made'"),
        ({"collectio": "made"}, UnknownNameError, "no column 'collectio'. Did you mean 'collection'?"),
        ({"track_ids": ["made/001", "made/0O2"]}, UnknownNameError, "no track 'made/0O2'. Did you mean"),
        ({"track_ids": [5]}, UnknownNameError, "no track 5"),
        ({"query": "tempo >"}, StoreError, "cannot select by 'tempo >': invalid syntax"),
        ({"query": "tmpo > 3"}, StoreError, "'tmpo' is not defined. Columns are collection"),
        ({"query": "tempo = 3"}, StoreError, "cannot select by 'tempo = 3'"),
        ({"query": "tempo"}, StoreError, "cannot select by 'tempo'"),
        ({"query": "(((\n"}, StoreError, "cannot select by"),
        ({"query": ""}, StoreError, "cannot select by ''"),
    ],
)
def test_what_cannot_be_selected_is_said_in_one_line(
    labelled: FeatureStore, how: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        labelled.select(**how)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_selections_of_another_snapshot(labelled: FeatureStore) -> None:
    snapshots = labelled.snapshots["snapshot"].tolist()
    assert snapshots == sorted(snapshots, reverse=True)
    assert snapshots[0] == labelled.snapshot
    first_part = labelled.at(snapshots[2])  # before the labels and the second part
    assert (len(first_part.tracks), "tempo" in first_part.tracks) == (8, False)
    assert list(first_part.select(mood=1).tracks.index) == ["made/004", "made/007", "made/010"]
    assert list(labelled.select(mood=1).at(first_part.snapshot).tracks.index) == [
        "made/004",
        "made/007",
        "made/010",
    ]
    assert_array_equal(first_part["logmel"].stored("made/007"), labelled["logmel"].stored("made/007"))
    with pytest.raises(UnknownNameError, match="99"):
        labelled.at(99)
    with pytest.raises(UnknownNameError, match="no column 'tempo'"):
        first_part.select(tempo=60.0)


def test_only_selected_tracks_are_near(tmp_path: Path, store_of_rows: Any) -> None:
    cnn = CnnDefinition.model_validate({"kind": "cnn", "from": "logmel", "variant": "jamendo_fcn"})
    how = {"more": {"embedding": cnn}, "only": "embedding", "n_mels": 96, "frames_per_chunk": 1366}
    store = store_of_rows(tmp_path / "store", [[1, 2, 3, 1], [2, 2]], **how)
    chosen = store.select(mood=[0, 1])
    nearest = nearest_tracks(chosen, "made/000", n=10)
    assert sorted(nearest["track_id"]) == ["made/001", "made/003", "made/004"]
    with pytest.raises(UnknownNameError, match="no track 'made/002'"):
        nearest_tracks(chosen, "made/002")


@given(st.integers(-40, 40), st.none() | st.integers(-40, 40))
@settings(max_examples=50)
def test_chunks_of_a_track_are_taken_as_from_a_list(
    known_store: FeatureStore, start: int, stop: int | None
) -> None:
    longest = str(known_store.tracks["n_chunks"].idxmax())
    row = known_store.tracks.loc[longest]
    rows = of_zarr(known_store, "audio", row["part"])[row["row_start"] : row["row_start"] + row["n_chunks"]]
    assert_array_equal(known_store["audio"].stored(longest, start, stop), rows[start:stop])
    values = known_store["audio"].values(longest, start, stop)
    assert values.dtype == np.float32
    assert_array_equal(values, rows[start:stop].astype(np.float64) / 16384)


# Readers


def test_many_threads_read_one_reader(known_store: FeatureStore) -> None:
    part = known_store.tracks["part"].value_counts().index[0]
    rows = of_zarr(known_store, "audio", part)
    ranges = st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows))).map(sorted)

    with ThreadPoolExecutor(8) as pool:

        @given(st.lists(ranges, min_size=1, max_size=24))
        @settings(max_examples=30)
        def check(wanted: list[list[int]]) -> None:
            reader = ShardReader(known_store.location, part, known_store["audio"].rows.arrays[part])
            found = pool.map(lambda stretch: reader.rows(*stretch), wanted)
            for (start, stop), values in zip(wanted, found, strict=True):
                assert_array_equal(values, rows[start:stop])

        check()


def test_stores_and_features_can_be_sent(known_store: FeatureStore) -> None:
    chosen = known_store.select(mood=2)
    chosen["logmel"].chunks  # noqa: B018  # what was looked at before is no hindrance
    feature = sent(chosen["logmel"])
    assert list(feature.tracks.index) == list(chosen.tracks.index)
    name = chosen.tracks.index[0]
    assert_array_equal(feature.stored(name), known_store["logmel"].stored(name))
    past = sent(known_store.at(1))
    assert (past.snapshot, len(past.tracks)) == (1, 40)


def test_reading_imports_no_more_than_it_needs(known_store: FeatureStore) -> None:
    """Neither to import it, nor to open a store and read plain numpy."""
    script = (
        "import sys; from pipeline.store.reading import FeatureStore\n"
        "store = FeatureStore(sys.argv[1]).select(mood=1)\n"
        "store['logmel'].frames('made/001', 0.1, 0.4)\n"
        "heavy = ('dask', 'distributed', 'librosa', 'matplotlib', 'scipy', 'torch', 'xarray', 'zarr')\n"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(known_store.location)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    assert done.stdout.split() == []
