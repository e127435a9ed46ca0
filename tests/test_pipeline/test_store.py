"""The store: what others read in it, what it says of damage, and of disks that refuse."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from deltalake import DeltaTable

from features.framing import Grid
from pipeline import FeatureStore
from pipeline.definitions import AUDIO_SCALE, AudioDefinition, Feature, LogMelDefinition, resolve
from pipeline.errors import (
    CatalogError,
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreMissingError,
    StoreWriteError,
    UnknownNameError,
)
from pipeline.store.folder import Folder, writing
from pipeline.store.format_file import read_format
from pipeline.store.garbage import collect_garbage
from pipeline.store.index import Index
from pipeline.store.location import FORMAT_FILE, location_of
from pipeline.store.parts import PartWriter
from pipeline.store.reading import open_part
from pipeline.store.records import ArrayRow, TrackRow
from pipeline.store.shard_reader import ShardReader
from pipeline.store.shards import ShardedArrayWriter

AUDIO = "audio: {kind: audio, sample_rate: 12000, dtype: int16}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_fft: 512, n_mels: 32}"
MFCC = "mfcc: {kind: mfcc, from: logmel, n_mfcc: 12}"
GRID = Grid(frames_per_chunk=4, min_tail_s=0.0)


def one_feature(**parameters: Any) -> Feature:
    definitions = {
        "audio": AudioDefinition(kind="audio"),
        "logmel": LogMelDefinition(kind="log_mel", from_="audio", n_mels=5, **parameters),
    }
    return resolve(definitions, GRID)["logmel"]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that fails as expected."""
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert line.startswith("mirstore: ")
    assert done.stderr.count("mirstore: ") == 1
    return line


# Shards


@pytest.mark.parametrize("n_rows", [0, 1, 255, 256, 257, 513])
def test_shards_are_plain_zarr(tmp_path: Path, n_rows: int) -> None:
    feature = one_feature()
    rng = np.random.default_rng(n_rows)
    rows = rng.standard_normal((n_rows, *feature.row_shape)).astype(np.float16)
    with ShardedArrayWriter(Folder(tmp_path), "a", feature, feature.dims, {"x": 1}) as writer:
        for row in rows:
            writer.append(row)
        writer.finish()
    assert writer.n_bytes == sum(f.stat().st_size for f in tmp_path.rglob("c/**/*") if f.is_file())
    for pipeline in ("zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"):
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(zarr.storage.LocalStore(tmp_path / "a"), mode="r")
            np.testing.assert_array_equal(np.asarray(array[:]), rows)
    assert array.metadata.dimension_names == ("chunk", "mel", "frame")
    assert dict(array.attrs) == {"x": 1}
    assert array.chunks == (1, *feature.row_shape)
    # What zarr-python would have written for such an array is described the same way.
    again = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=array.shape,
        chunks=array.chunks,
        shards=array.shards,
        dtype=array.dtype,
        compressors=array.compressors,
    )
    assert again.metadata.codecs == array.metadata.codecs


def test_shards_refuse_other_rows(tmp_path: Path) -> None:
    feature = one_feature()
    writer = ShardedArrayWriter(Folder(tmp_path), "a", feature, feature.dims, {})
    with pytest.raises(ValueError, match="must be"):
        writer.append(np.zeros(feature.row_shape, np.float32))
    with pytest.raises(ValueError, match="must be"):
        writer.append(np.zeros((2, 2), np.float16))


def test_part_with_arrays_of_unequal_length_is_refused_and_removed(tmp_path: Path) -> None:
    features = [one_feature(), replace(one_feature(fmax=3000.0), name="other")]

    def unequal() -> None:
        with PartWriter(Folder(tmp_path), features, "{}") as part:
            part.append("logmel", np.zeros(features[0].row_shape, np.float16))
            part.finish()

    with pytest.raises(StoreDamagedError, match="rows"):
        unequal()
    assert list((tmp_path / "parts").iterdir()) == []


# What others see in a part


@pytest.fixture
def two_versions(project: Any) -> Any:
    """A store with two log-mels of different height, one from the cache, and MFCC."""
    project.write_catalog(AUDIO, LOGMEL, MFCC)
    project.extract()
    project.write_catalog(AUDIO, LOGMEL, MFCC, "tall: {kind: log_mel, from: audio, n_mels: 48}")
    project.extract()
    return project


def test_part_in_plain_zarr_and_in_xarray(two_versions: Any) -> None:
    store = two_versions.store
    for part in set(store.tracks["part"]):
        folder = store.location.path / "parts" / part
        group = zarr.open_group(folder, mode="r")
        data = xr.open_zarr(folder, consolidated=False)
        n_rows = data.sizes["chunk"]
        assert data.sizes["frame"] == 64
        assert data.sizes["sample"] == 64 * 256
        np.testing.assert_allclose(data["frame"], np.arange(64) * 256 / 12_000)
        assert data["frame"].attrs["units"] == "s"
        assert data["start_s"].attrs["units"] == "s"
        for name in ("audio", "logmel", "tall", "mfcc"):
            array_name = store[name].rows.arrays[part]
            variable = data[array_name]
            assert variable.dims[0] == "chunk"
            assert set(variable.coords) >= {"start_s", "valid_frames", "track_number"}
            assert variable.attrs["parameters"]["kind"] == store[name].kind
            assert group[array_name].shape[0] == n_rows
            tracks = store.tracks[store.tracks["part"] == part]
            for track_id, row in tracks.iterrows():
                rows = slice(row["row_start"], row["row_start"] + row["n_chunks"])
                stored = store[name].stored(track_id)
                np.testing.assert_array_equal(np.asarray(group[array_name][rows]), stored)
                np.testing.assert_array_equal(
                    variable[rows].values.astype(np.float32), store[name].values(track_id)
                )
        described = json.loads((folder / "zarr.json").read_text())["attributes"]["tracks"]
        assert [track["track_id"] for track in described] == list(tracks.sort_values("row_start").index)
        for number, track in enumerate(described):
            rows = slice(track["row_start"], track["row_start"] + track["n_chunks"])
            assert set(data["track_number"].values[rows]) == {number}
            np.testing.assert_allclose(
                data["start_s"].values[rows], np.arange(track["n_chunks"]) * 64 * 256 / 12_000
            )
            n_samples = int(store.tracks.loc[track["track_id"], "n_samples"])
            np.testing.assert_array_equal(
                data["valid_frames"].values[rows], store.grid.valid_frames(n_samples)
            )
        heights = {data[store[name].rows.arrays[part]].dims[1] for name in ("logmel", "tall")}
        assert heights == {"mel", "mel_48"}


def test_index_and_part_without_mirstore(two_versions: Any) -> None:
    """What a track's rows are, found by deltalake, pandas and zarr alone."""
    folder = two_versions.store_folder
    tracks = DeltaTable(folder / "tracks").to_pandas().query("status == 'ok'").set_index("track_id")
    arrays = DeltaTable(folder / "arrays").to_pyarrow_table().to_pandas()
    files = [
        str(folder / "arrays" / file) for file in os.listdir(folder / "arrays") if file.endswith("parquet")
    ]
    assert len(pd.concat([pd.read_parquet(file) for file in files])) >= len(arrays)
    row = tracks.loc["demo/long.ogg"]
    [name] = arrays.query("feature == 'tall' and part == @row.part")["array"]
    rows = zarr.open_group(folder / "parts" / row["part"], mode="r")[name]
    found = rows[int(row["row_start"]) : int(row["row_start"] + row["n_chunks"])]
    np.testing.assert_array_equal(found, two_versions.store["tall"].stored("demo/long.ogg"))


def test_scale_factor_is_decoded(two_versions: Any) -> None:
    store = two_versions.store
    part = store.tracks["part"].iloc[0]
    name = f"audio@{store['audio'].fingerprint}"
    raw = zarr.open_group(store.location.path / "parts" / part, mode="r")[name]
    decoded = open_part(store.location, part)[name]
    assert raw.dtype == np.int16
    assert raw.attrs["scale_factor"] == AUDIO_SCALE == 1 / 16384
    np.testing.assert_allclose(decoded.values, np.asarray(raw[:]) / 16384.0)
    assert 0.05 < float(np.abs(decoded).max()) < 1.0


def test_track_has_names_and_seconds(two_versions: Any) -> None:
    store = two_versions.store
    found = store["tall"].track("demo/long.ogg")
    assert found.dims == ("chunk", "mel", "frame")
    assert found.shape == (29, 48, 64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found["start_s"], np.arange(29) * 64 * 256 / 12_000)
    assert (found["mel"].attrs["units"], found["frame"].attrs["units"]) == ("Hz", "s")
    assert np.all(np.diff(found["mel"]) > 0)
    audio = store["audio"].track("demo/long.ogg")
    assert audio.dims == ("chunk", "sample")
    assert float(audio["sample"][1]) == pytest.approx(1 / 12_000)
    frames = store["tall"].frames("demo/long.ogg")
    n_samples = int(store.tracks.loc["demo/long.ogg", "n_samples"])
    assert frames.shape == (48, min(1 + n_samples // 256, 29 * 64))


def test_every_version_has_its_name(two_versions: Any) -> None:
    store = two_versions.store
    assert list(store) == ["audio", "logmel", "mfcc", "tall"]
    fingerprint = store["tall"].fingerprint
    assert FeatureStore(store.location)[f"tall@{fingerprint}"].row_shape == (48, 64)
    with pytest.raises(UnknownNameError, match=fingerprint):
        store["tall@000000000000"]


# Damage

KINDS = ("audio", "logmel", "mfcc")


@pytest.fixture(scope="module")
def sound_store(tmp_path_factory: pytest.TempPathFactory, music: Path, scheduler: str) -> Path:
    """A catalog whose store holds one part with 40 s of audio."""
    from pipeline import extract

    folder = tmp_path_factory.mktemp("sound")
    (folder / "music").mkdir()
    shutil.copy(music / "long.ogg", folder / "music")
    lines = ["version: 1", "store: ./store", "grid: {frames_per_chunk: 64, min_tail_s: 0.5}"]
    lines += ["collections:", "  demo: {path: ./music}", "features:"]
    (folder / "catalog.yaml").write_text(
        "\n".join([*lines, *(f"  {text}" for text in (AUDIO, LOGMEL, MFCC))])
    )
    assert extract(folder / "catalog.yaml", scheduler=scheduler).songs == 1
    return folder / "catalog.yaml"


@pytest.fixture
def shard_of(sound_store: Path) -> Any:
    """Shard files by feature; whatever a test does to them is undone."""
    store = FeatureStore(sound_store)
    shards = {}
    for name in KINDS:
        array = f"{name}@{store[name].fingerprint}"
        [shards[name]] = [
            path for path in (store.location.path / "parts").glob(f"*/{array}/c/0/**/*") if path.is_file()
        ]
    contents = {path: path.read_bytes() for path in shards.values()}
    yield shards
    for path, content in contents.items():
        path.write_bytes(content)


def index_bytes(name: str) -> int:
    return 16 * {"audio": 128}.get(name, 256) + 4


def assert_damage_is_told(catalog: Path, name: str) -> None:
    store = FeatureStore(catalog)
    with pytest.raises(StoreDamagedError) as caught:
        store[name].stored("demo/long.ogg")
    text = str(caught.value)
    assert store.tracks.loc["demo/long.ogg", "part"] in text
    assert f"{name}@{store[name].fingerprint}" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("place", ["rows", "index"])
def test_flipped_byte_is_noticed(sound_store: Path, shard_of: Any, name: str, place: str) -> None:
    path = shard_of[name]
    content = path.read_bytes()
    border = len(content) - index_bytes(name)
    rng = np.random.default_rng([len(name), len(place)])
    low, high = (0, border) if place == "rows" else (border, len(content))
    edges = [low, low + 3, high - 1]
    for position in [*edges, *rng.integers(low, high, 20)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert_damage_is_told(sound_store, name)
    path.write_bytes(content)
    assert FeatureStore(sound_store)[name].stored("demo/long.ogg").shape[0] == 29


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kept", [0, 1, 0.5, -1])
def test_truncated_shard_is_noticed(sound_store: Path, shard_of: Any, name: str, kept: float) -> None:
    content = shard_of[name].read_bytes()
    shard_of[name].write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    assert_damage_is_told(sound_store, name)


@pytest.mark.parametrize("name", KINDS)
def test_missing_shard_is_not_silence(sound_store: Path, shard_of: Any, name: str) -> None:
    shard_of[name].unlink()
    assert_damage_is_told(sound_store, name)


@pytest.mark.parametrize(
    "content", ["", "{}", "null", "[]", '{"zarr_format": 3', '{"zarr_format": 3, "node_type": "array"}']
)
def test_damaged_metadata_is_noticed(sound_store: Path, content: str) -> None:
    store = FeatureStore(sound_store)
    row = store.arrays.iloc[0]
    path = store.location.path / "parts" / row["part"] / row["array"] / "zarr.json"
    before = path.read_bytes()
    try:
        path.write_text(content)
        with pytest.raises(StoreDamagedError, match=row["array"]):
            ShardReader(store.location, row["part"], row["array"])
    finally:
        path.write_bytes(before)


def test_missing_part_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(StoreDamagedError, match="part p"):
        ShardReader(Folder(tmp_path), "p", "a@1")
    with pytest.raises(StoreDamagedError, match="part p"):
        open_part(tmp_path, "p")


def test_rows_past_the_end_are_refused(sound_store: Path) -> None:
    store = FeatureStore(sound_store)
    row = store.arrays.iloc[0]
    reader = ShardReader(store.location, row["part"], row["array"])
    for start, stop in ((0, 30), (-1, 2), (5, 4)):
        with pytest.raises(StoreDamagedError, match="29"):
            reader.rows(start, stop)


# The format file


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ('{"format": 99, "grid": {}}', StoreFormatError, "Install a newer mirstore"),
        ("", StoreDamagedError, "backup"),
        ("{", StoreDamagedError, "backup"),
        ("[]", StoreDamagedError, "backup"),
        ("null", StoreDamagedError, "backup"),
        ("7", StoreDamagedError, "backup"),
        ("{}", StoreDamagedError, "backup"),
        ('{"format": "x"}', StoreDamagedError, "backup"),
        ('{"format": 1}', StoreDamagedError, "backup"),
        ('{"format": 1, "grid": 5}', StoreDamagedError, "backup"),
        ('{"format": 1, "grid": {"hop_length": 0}}', StoreDamagedError, "backup"),
        ('{"format": 1, "grid": {"hop_length": "256"}}', StoreDamagedError, "backup"),
        ('{"format": 1, "grid": {"bars": 3}}', StoreDamagedError, "backup"),
        ("\udcff\udcfe", StoreDamagedError, "backup"),
    ],
)
def test_format_file(tmp_path: Path, content: str, error: type[StoreError], words: str) -> None:
    (tmp_path / FORMAT_FILE).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(error, match=words) as caught:
        read_format(Folder(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", [("extract",), ("extract", "--dry-run"), ("status",)])
@pytest.mark.parametrize(
    ("content", "words"),
    [('{"format": 99, "grid": {}}', "format 99"), ('{"format": 1', "format file")],
    ids=["newer", "damaged"],
)
def test_store_that_cannot_be_read_is_left_alone(
    project: Any, verb: tuple[str, ...], content: str, words: str
) -> None:
    project.store_folder.mkdir()
    (project.store_folder / FORMAT_FILE).write_text(content)
    assert words in one_line(project.run(*verb))
    assert (project.store_folder / FORMAT_FILE).read_text() == content
    assert {path.name for path in project.store_folder.iterdir()} <= {FORMAT_FILE, ".lock"}


@pytest.mark.parametrize("verb", [("extract",), ("extract", "--dry-run")])
def test_another_grid_names_both_values(project: Any, verb: tuple[str, ...]) -> None:
    project.extract()
    before = project.rows()
    text = project.catalog.read_text()
    project.catalog.write_text(text.replace("frames_per_chunk: 64", "frames_per_chunk: 32"))
    line = one_line(project.run(*verb))
    assert "frames_per_chunk 64 (catalog: 32)" in line
    assert "hop_length" not in line
    project.catalog.write_text(text)
    assert project.rows() == before


@pytest.mark.parametrize("verb", ["status", "failures", "gc", "extract"])
def test_store_that_is_a_file(project: Any, verb: str) -> None:
    project.store_folder.write_text("no folder")
    one_line(project.run(verb))
    assert project.store_folder.read_text() == "no folder"


def test_index_that_has_gone(project: Any) -> None:
    project.extract()
    shutil.rmtree(project.store_folder / "tracks" / "_delta_log")
    assert "index" in one_line(project.run("status"))


def test_index_that_lacks_an_entry_of_its_log(project: Any) -> None:
    project.extract()
    project.add_song("another.wav")
    project.extract()
    (project.store_folder / "tracks" / "_delta_log" / f"{1:020}.json").unlink()
    line = one_line(project.run("status"))
    assert "index" in line
    assert len(line.replace(str(project.store_folder), "")) < 300


def test_missing_store_and_urls(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError, match="mirstore extract"):
        FeatureStore(tmp_path / "none")
    assert location_of(f"file://{tmp_path}") == Folder(tmp_path)
    with pytest.raises(CatalogError, match="not ftp://"):
        location_of("ftp://host/prefix")


# Disks that refuse


def test_full_disk(empty_project: Any, tmpfs: Callable[..., Path]) -> None:
    tmpfs(empty_project.store_folder, "size=4m")
    for number in range(30):
        empty_project.add_song(f"{number:02}.wav", seconds=12.0, seed=number)
    done = empty_project.run("extract", shared=True)
    line = one_line(done)
    assert "the disk is full" in line
    store = empty_project.store
    kept = {track_id: store["audio"].stored(track_id).tobytes() for track_id in store.tracks.index}
    assert len(kept) < 30
    subprocess.run(["mount", "-o", "remount,size=64m", empty_project.store_folder], check=True)
    report = empty_project.extract()
    assert (report.songs, report.failures) == (30 - len(kept), 0)
    store = empty_project.store
    assert len(store.tracks) == 30
    for track_id, audio in kept.items():
        assert store["audio"].stored(track_id).tobytes() == audio


def test_full_disk_at_the_commit(project: Any, tmpfs: Callable[..., Path]) -> None:
    tmpfs(project.store_folder, "size=8m")
    project.extract()
    before = project.rows()
    (project.music / "long.ogg").rename(project.music / "moved.ogg")
    filler = project.store_folder / "parts" / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreWriteError, match="the disk is full"):
        project.extract()
    assert project.rows() == before
    filler.unlink()
    assert project.extract().moved == 1
    assert len(project.rows()) == len(before)


def test_read_only_disk(project: Any, tmpfs: Callable[..., Path]) -> None:
    tmpfs(project.store_folder, "size=64m")
    project.extract()
    before = project.rows()
    project.add_song("new.wav")
    subprocess.run(["mount", "-o", "remount,ro", project.store_folder], check=True)
    for verb in ("extract", "gc"):
        assert "read-only" in one_line(project.run(verb))
    assert project.rows() == before
    assert project.run_json("status")["tracks"] == len(project.store.tracks)
    assert len(project.run_json("extract", "--dry-run")) == 1
    subprocess.run(["mount", "-o", "remount,rw", project.store_folder], check=True)
    assert project.extract().songs == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_refusals_are_told_in_words(tmp_path: Path, number: int) -> None:
    with pytest.raises(StoreWriteError, match=str(tmp_path)) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "a bug")


def test_full_disk_in_the_middle_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = one_feature()

    def refused(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refused)

    def write() -> None:
        with PartWriter(Folder(tmp_path), [feature], "{}") as part:
            part.append("logmel", np.zeros(feature.row_shape, np.float16))
            part.add_track("demo/a", np.array([4], np.int32))
            part.finish()

    with pytest.raises(StoreWriteError, match="the disk is full"):
        write()
    assert list((tmp_path / "parts").iterdir()) == []


# The index


def a_track(name: str, **values: Any) -> TrackRow:
    return TrackRow(
        **{**dict(track_id=name, collection="c", uri=name, size=1, mtime_ns=2, status="ok"), **values}
    )


def test_commits_add_update_and_remove(tmp_path: Path) -> None:
    index = Index.create(tmp_path, GRID)
    array = ArrayRow("p", "audio", "f", "audio", "audio@f", 3, 9, "int16", "[4]", "{}", "{}")
    index.commit(arrays=[array], added=[a_track("a"), a_track("b")], provenance={"command": "first"})
    index.commit(
        updated=[a_track("b", size=5), a_track("c")], removed=["a"], provenance={"command": "second"}
    )
    for view in (index, Index(tmp_path)):
        table = view.tracks().set_index("track_id")
        assert dict(table["size"]) == {"b": 5, "c": 1}
        assert table["row_start"].isna().all()
        assert list(view.arrays()["array"]) == ["audio@f"]
    assert index.last_commit()["command"] == "second"
    reader = Index(tmp_path)
    index.commit(added=[a_track("d")], provenance={})
    assert len(reader.tracks()) == 2, "a reader keeps the commit it opened"
    reader = Index(tmp_path)
    assert len(reader.tracks()) == 3


def test_making_a_store_twice_keeps_what_is_in_it(tmp_path: Path) -> None:
    Index.create(tmp_path, GRID)
    (tmp_path / FORMAT_FILE).unlink()  # as if the making had been cut short
    index = Index.open_or_create(tmp_path, GRID)
    index.commit(added=[a_track("a")], provenance={})
    assert list(Index.open_or_create(tmp_path, GRID).tracks()["track_id"]) == ["a"]


def test_many_commits_are_merged(tmp_path: Path) -> None:
    index = Index.create(tmp_path, GRID)
    for number in range(40):
        index.commit(added=[a_track(str(number))], provenance={})
    before = index.version
    index.compact({"command": "test"})
    assert index.version == before + 1
    assert sorted(Index(tmp_path).tracks()["track_id"], key=int) == [str(n) for n in range(40)]


def test_lock_goes_with_its_block(tmp_path: Path) -> None:
    with Folder(tmp_path).lock("one"):
        with pytest.raises(StoreError, match="`one`"), Folder(tmp_path).lock("two"):
            pass
    with Folder(tmp_path).lock("three"):
        pass


# Upkeep


def test_garbage_is_what_no_commit_names(project: Any) -> None:
    project.extract()
    before = project.rows()
    parts = project.store_folder / "parts"
    part = project.store.tracks["part"].iloc[0]
    (parts / "orphan" / "audio@x" / "c").mkdir(parents=True)
    (parts / "orphan" / "audio@x" / "c" / "0").write_bytes(bytes(100))
    (parts / part / "left@000000000000").mkdir()
    assert project.store.unreferenced_parts == ["orphan"]
    kept = collect_garbage(project.store_folder)
    assert {orphan.removed for orphan in kept} == {False}
    assert {orphan.name: orphan.bytes for orphan in kept} == {"orphan": 100, f"{part}/left@000000000000": 0}
    listed = collect_garbage(project.store_folder, grace_s=0, dry_run=True)
    assert {orphan.removed for orphan in listed} == {False}
    assert {orphan.removed for orphan in collect_garbage(project.store_folder, grace_s=0)} == {True}
    assert not (parts / "orphan").exists()
    assert not (parts / part / "left@000000000000").exists()
    assert collect_garbage(project.store_folder, grace_s=0) == []
    assert project.rows() == before


def test_garbage_is_not_looked_for_where_there_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "parts" / "precious").mkdir(parents=True)
    with pytest.raises(StoreMissingError):
        collect_garbage(tmp_path, grace_s=0)
    assert (tmp_path / "parts" / "precious").exists()


def test_status_of_a_store_without_tracks(empty_project: Any) -> None:
    Index.create(empty_project.store_folder, Grid(frames_per_chunk=64, min_tail_s=0.5))
    status = empty_project.run_json("status")
    assert (status["tracks"], status["hours"], status["features"]) == (0, 0.0, [])
    assert empty_project.run_json("failures") == {"failed": [], "truncated": []}
    assert empty_project.run("status").returncode == 0
