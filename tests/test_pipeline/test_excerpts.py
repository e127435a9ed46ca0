"""A time range of a track: the slice of the whole whose times lie in it, and no other chunk is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile as sf
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pipeline import FeatureStore
from pipeline.definitions import CnnDefinition
from pipeline.errors import StoreError
from pipeline.store.folder import Folder

RATE, HOP, FRAMES = 12_000, 256, 64
CHUNK = HOP * FRAMES  # samples
SONGS = {  # sample rate in Hz, samples
    "dropped.flac": (RATE, 3 * CHUNK + 1712),  # its tail is shorter than 0.5 s
    "exact.wav": (RATE, 3 * CHUNK),
    "kept.wav": (RATE, 2 * CHUNK + 7000),
    "short.wav": (RATE, 120),
    "other rate.ogg": (22_050, 140_000),
}


class Watched(Folder):
    """A folder that remembers which ranges of its files were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[str, int, int]] = []

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.reads.append((key, start, length))
        return super().read_range(key, start, length)

    def rows(self) -> list[tuple[str, int]]:
        """Part and row of what was read since the last call, by the shards' own indexes."""
        found = []
        for key, start, length in self.reads:
            array, _, place = key.partition("/c/")
            metadata = json.loads((self.path / array / "zarr.json").read_text())
            per_shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
            index = np.frombuffer((self.path / key).read_bytes()[-16 * per_shard - 4 : -4], "<u8")
            for slot, (offset, size) in enumerate(index.reshape(-1, 2).tolist()):
                if size < 2**63 and offset < start + length and start < offset + size:
                    found.append((array.split("/")[1], int(place.split("/")[0]) * per_shard + slot))
        self.reads.clear()
        return sorted(found)


def whole(store: FeatureStore, name: str, track_id: str) -> np.ndarray:
    """All values of a track, read with zarr-python and cut as librosa would end."""
    row = store.tracks.loc[track_id]
    array = store[name].rows.arrays[row["part"]]
    stored = zarr.open_array(store.location.path / "parts" / row["part"] / array, mode="r")
    rows = np.asarray(stored[row["row_start"] : row["row_start"] + row["n_chunks"]])
    values = np.concatenate([chunk.astype(np.float32) for chunk in rows], axis=-1)
    if rows.dtype == np.int16:
        return values[: row["n_samples"]] / 16384
    return values[:, : 1 + row["n_samples"] // HOP]


def times(store: FeatureStore, name: str, values: np.ndarray) -> np.ndarray:
    if name == "audio":
        return librosa.samples_to_time(np.arange(len(values)), sr=RATE)
    return librosa.frames_to_time(np.arange(values.shape[1]), sr=RATE, hop_length=HOP)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, project_in: Callable[[Path], Any]) -> FeatureStore:
    """Songs with tails of every kind."""
    project = project_in(tmp_path_factory.mktemp("excerpts"))
    for seed, (name, (rate, length)) in enumerate(SONGS.items()):
        project.add_song(name, sample_rate=rate, seconds=length / rate, seed=seed)
    project.write_catalog()
    assert project.extract().songs == len(SONGS)
    return FeatureStore(Watched(project.store_folder))


def watched_rows(store: FeatureStore) -> list[tuple[str, int]]:
    assert isinstance(store.location, Watched)
    return store.location.rows()


def near(moment: float) -> st.SearchStrategy[float]:
    """A moment, and the numbers directly beside it."""
    beside = [moment, float(np.nextafter(moment, np.inf)), float(np.nextafter(moment, 0))]
    return st.sampled_from(beside)


MOMENTS = st.one_of(
    st.floats(0, 14),
    st.integers(0, 9).flatmap(lambda chunk: near(chunk * CHUNK / RATE)),
    st.integers(0, 9 * FRAMES).flatmap(lambda frame: near(frame * HOP / RATE)),
    st.integers(0, 9 * CHUNK).flatmap(lambda sample: near(sample / RATE)),
)


@given(
    st.sampled_from(sorted(SONGS)), st.sampled_from(["audio", "logmel", "mfcc"]), st.tuples(MOMENTS, MOMENTS)
)
@settings(max_examples=150)
def test_an_excerpt_is_a_slice_of_the_whole(
    watched: FeatureStore, song: str, name: str, moments: tuple[float, float]
) -> None:
    start_s, stop_s = sorted(moments)
    feature, track_id = watched[name], f"demo/{song}"
    values = whole(watched, name, track_id)
    seconds = times(watched, name, values)
    inside = (seconds >= start_s) & (seconds < stop_s)

    watched_rows(watched)
    read = feature.waveform if name == "audio" else feature.frames
    assert_array_equal(read(track_id, start_s, stop_s), values[..., inside])
    row = watched.tracks.loc[track_id]
    per_chunk = CHUNK if name == "audio" else FRAMES
    needed = {row["row_start"] + i // per_chunk for i in np.flatnonzero(inside).tolist()}
    assert watched_rows(watched) == sorted((row["part"], number) for number in needed)

    end_s = min(row["n_samples"], row["n_chunks"] * CHUNK) / RATE
    if start_s == stop_s:
        with pytest.raises(StoreError, match="expected 0 <= start_s < stop_s"):
            feature.excerpt(track_id, start_s, stop_s)
    elif start_s >= end_s and not inside.any():
        with pytest.raises(StoreError, match="expected start_s before the end of"):
            feature.excerpt(track_id, start_s, stop_s)
    else:
        excerpt = feature.excerpt(track_id, start_s, stop_s)
        assert_array_equal(excerpt.values, values[..., inside])
        assert_array_equal(excerpt["time"], seconds[inside])
        assert excerpt.dims == {"audio": ("time",), "logmel": ("mel", "time")}.get(
            name, ("coefficient", "time")
        )


@pytest.mark.parametrize("song", sorted(SONGS))
def test_the_whole_is_what_was_stored_without_its_padding(watched: FeatureStore, song: str) -> None:
    for name in ("logmel", "mfcc"):
        assert_array_equal(watched[name].frames(f"demo/{song}"), whole(watched, name, f"demo/{song}"))
    assert_array_equal(watched["audio"].waveform(f"demo/{song}"), whole(watched, "audio", f"demo/{song}"))


@pytest.mark.parametrize("song", ["dropped.flac", "exact.wav", "kept.wav", "short.wav"])
def test_the_waveform_is_the_file(watched: FeatureStore, song: str) -> None:
    decoded, rate = sf.read(watched.location.path.parent / "music" / song, dtype="float32")
    assert rate == RATE
    length = 3 * CHUNK if song == "dropped.flac" else SONGS[song][1]
    waveform = watched["audio"].waveform(f"demo/{song}")
    assert waveform.dtype == np.float32
    assert_allclose(waveform, decoded[:length], atol=0.5001 / 16384, rtol=0)
    excerpt = watched["audio"].excerpt(f"demo/{song}", 0.005, 0.008)
    assert_allclose(excerpt, decoded[60:96], atol=0.5001 / 16384, rtol=0)


@pytest.mark.parametrize("song", sorted(SONGS))
def test_masked_is_what_lies_past_the_end(watched: FeatureStore, song: str) -> None:
    for name in ("audio", "logmel", "mfcc"):
        masked = watched[name].track(f"demo/{song}", masked=True)
        plain = watched[name].track(f"demo/{song}")
        joined = np.concatenate(list(masked.values), axis=-1)
        n_real = whole(watched, name, f"demo/{song}").shape[-1]
        assert np.isfinite(joined[..., :n_real]).all()
        assert np.isnan(joined[..., n_real:]).all()
        assert np.isfinite(plain).all()
        assert_array_equal(masked["valid_frames"], plain["valid_frames"])
        if name != "audio":
            assert int(masked["valid_frames"].sum()) == n_real


@pytest.mark.parametrize("name", ["audio", "logmel"])
def test_stretches_that_end_nowhere_end_with_the_track(watched: FeatureStore, name: str) -> None:
    feature, track_id = watched[name], "demo/kept.wav"
    values = whole(watched, name, track_id)
    read = feature.waveform if name == "audio" else feature.frames
    assert_array_equal(read(track_id, 0.0, np.inf), values)
    assert_array_equal(read(track_id, -3.0), values)
    assert_array_equal(feature.excerpt(track_id, 0.0, np.inf), values)
    end_s = SONGS["kept.wav"][1] / RATE
    assert feature.excerpt(track_id, end_s - 0.1, 100.0).sizes["time"] > 0
    with pytest.raises(StoreError, match=f"before the end of {track_id}, {end_s:.3f} s, got 99.0"):
        feature.excerpt(track_id, 99.0, 100.0)
    assert read(track_id, 2.0, 1.0).shape == (*values.shape[:-1], 0)


@pytest.mark.parametrize(("start_s", "stop_s"), [(np.nan, 1.0), (0.0, np.nan), (-1.0, 1.0), (1.0, 1.0)])
def test_stretches_that_are_none_are_refused(watched: FeatureStore, start_s: float, stop_s: float) -> None:
    with pytest.raises(StoreError, match="expected 0 <= start_s < stop_s, got"):
        watched["logmel"].excerpt("demo/kept.wav", start_s, stop_s)
    if np.isnan(start_s + stop_s):
        with pytest.raises(StoreError, match="nan"):
            watched["logmel"].frames("demo/kept.wav", start_s, stop_s)


def test_stretches_of_the_wrong_feature_are_refused(watched: FeatureStore) -> None:
    with pytest.raises(StoreError, match="audio has no frames"):
        watched["audio"].frames("demo/kept.wav")
    with pytest.raises(StoreError, match="logmel is log_mel, not audio"):
        watched["logmel"].waveform("demo/kept.wav")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, store_of_rows: Any) -> FeatureStore:
    """One track of 300 chunks of an embedding, on the default grid."""
    cnn = CnnDefinition.model_validate({"kind": "cnn", "from": "logmel", "variant": "jamendo_fcn"})
    folder = tmp_path_factory.mktemp("embedded") / "store"
    written = {"more": {"embedding": cnn}, "only": "embedding", "n_mels": 96, "frames_per_chunk": 1366}
    store: FeatureStore = store_of_rows(folder, [[300]], **written)
    return store


@given(
    st.tuples(
        *[
            st.one_of(
                st.floats(0, 320 * 29.14),
                st.integers(0, 310).flatmap(lambda chunk: near(chunk * 1366 * HOP / RATE)),
            )
        ]
        * 2
    )
)
@settings(max_examples=150)
def test_vectors_of_a_stretch_are_those_of_the_chunks_it_overlaps(
    embedded: FeatureStore, moments: tuple[float, float]
) -> None:
    start_s, stop_s = sorted(moments)
    if start_s == stop_s:
        return
    borders = np.arange(301) * (1366 * HOP / RATE)
    overlapping = (borders[:-1] < stop_s) & (borders[1:] > start_s)
    if start_s >= borders[-1]:
        with pytest.raises(StoreError, match="before the end"):
            embedded["embedding"].excerpt("made/000", start_s, stop_s)
        return
    excerpt = embedded["embedding"].excerpt("made/000", start_s, stop_s)
    assert excerpt.dims == ("time", "dimension")
    assert_array_equal(excerpt["time"], borders[:-1][overlapping])
    assert_array_equal(excerpt, embedded["embedding"].values("made/000")[overlapping])


def test_samples_of_a_long_track_keep_their_times(tmp_path: Path, store_of_rows: Any) -> None:
    """After half an hour a sample's time, times the rate, may be more than its number."""
    audio = store_of_rows(tmp_path / "store", [[72]], only="audio", frames_per_chunk=1366)["audio"]
    for number in (24_576_010, 24_576_011, 24_576_013, 24_580_000):
        assert_array_equal(
            audio.excerpt("made/000", number / RATE, (number + 3) / RATE)["time"],
            np.arange(number, number + 3) / RATE,
        )
