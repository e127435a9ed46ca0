"""Reading a store: seconds on axes, names that do not exist, pictures, nearest tracks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import FeatureStore, extract, nearest_tracks
from pipeline.drawing import save_track_page, track_page
from pipeline.errors import StoreError, StoreMissingError, UnknownNameError

AUDIO = "audio: {kind: audio}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_mels: 32}"


@pytest.fixture(scope="module")
def full_store(tmp_path_factory: pytest.TempPathFactory, scheduler: str) -> FeatureStore:
    """Three synthetic songs on the default grid, with embeddings."""
    from pipeline.sample import write_sample_collection

    folder = tmp_path_factory.mktemp("full")
    write_sample_collection(folder / "music", n_songs=3, seed=3, duration_s=40.0)
    root = Path(__file__).parents[2]
    text = (root / "catalog.yaml").read_text().replace("./demo/music", "./music")
    (folder / "catalog.yaml").write_text(text)
    report = extract(folder / "catalog.yaml", scheduler=scheduler)
    assert (report.songs, report.failures) == (3, 0)
    return FeatureStore(folder / "catalog.yaml")


def test_the_default_catalog_gives_every_feature_on_the_grid(full_store: FeatureStore) -> None:
    track_id = full_store.tracks.index[0]
    shapes = {name: full_store[name].track(track_id).shape for name in full_store}
    n_chunks = int(full_store.tracks.loc[track_id, "n_chunks"])
    assert shapes == {
        "audio": (n_chunks, 349_696),
        "logmel": (n_chunks, 96, 1366),
        "mfcc": (n_chunks, 90, 1366),
        "embedding": (n_chunks, 1024),
    }
    assert n_chunks == 2
    log_mel = full_store["logmel"].track(track_id)
    assert log_mel.dims == ("chunk", "mel", "frame")
    np.testing.assert_allclose(log_mel["start_s"], [0.0, 349_696 / 12_000])
    np.testing.assert_allclose(log_mel["frame"][[0, 1, -1]], [0.0, 256 / 12_000, 1365 * 256 / 12_000])
    assert log_mel["mel"].attrs["units"] == "Hz"
    assert 0 < float(log_mel["mel"][0]) < float(log_mel["mel"][-1]) < 6000
    embedding = full_store["embedding"].values(track_id)
    assert np.isfinite(embedding).all()
    assert embedding.std() > 0


def test_joined_frames_have_librosas_length(full_store: FeatureStore) -> None:
    track_id = full_store.tracks.index[0]
    n_samples = int(full_store.tracks.loc[track_id, "n_samples"])
    assert full_store["mfcc"].frames(track_id).shape == (90, 1 + n_samples // 256)
    with pytest.raises(StoreError, match="no frames"):
        full_store["embedding"].frames(track_id)


def test_nearest_tracks_are_ranked_by_cosine(full_store: FeatureStore) -> None:
    ids = list(full_store.tracks.index)
    nearest = nearest_tracks(full_store, ids[0], n=5)
    assert sorted([*nearest["track_id"], ids[0]]) == ids
    assert nearest["similarity"].is_monotonic_decreasing
    means = np.stack(
        [
            # A full chunk of 1366 frames, and what librosa would give beyond it.
            (1366 * vectors[0].astype(np.float64) + (n_samples // 256 + 1 - 1366) * vectors[1])
            / (n_samples // 256 + 1)
            for vectors, n_samples in (
                (full_store["embedding"].values(name), int(full_store.tracks.loc[name, "n_samples"]))
                for name in ids
            )
        ]
    )
    centred = means - means.mean(axis=0)
    expected = [
        centred[0]
        @ centred[ids.index(name)]
        / np.linalg.norm(centred[0])
        / np.linalg.norm(centred[ids.index(name)])
        for name in nearest["track_id"]
    ]
    np.testing.assert_allclose(nearest["similarity"], expected, atol=1e-4)


def test_queries_want_an_embedding(full_store: FeatureStore) -> None:
    with pytest.raises(StoreError, match="one vector a chunk"):
        nearest_tracks(full_store, full_store.tracks.index[0], feature="mfcc")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda store: store["logmle"], "Did you mean 'logmel'"),
        (lambda store: store["logmel@000000000000"], "not as 000000000000"),
        (lambda store: store["logmel"].track("demo/song 1.ogg"), "no track 'demo/song 1.ogg'"),
        (lambda store: nearest_tracks(store, "demo/none.ogg"), "no track"),
        (lambda store: track_page(store, "nothing"), "no track"),
    ],
)
def test_unknown_names_are_answered_with_a_suggestion(full_store: FeatureStore, use: Any, words: str) -> None:
    with pytest.raises(UnknownNameError, match=words):
        use(full_store)


def test_the_page_has_a_panel_for_each_feature_over_the_same_seconds(
    full_store: FeatureStore, tmp_path: Path
) -> None:
    track_id = full_store.tracks.index[0]
    figure = track_page(full_store, track_id)
    assert len(figure.axes) == 4
    duration = float(full_store.tracks.loc[track_id, "duration_s"])
    for panel in figure.axes:
        assert panel.get_xlim() == pytest.approx((0, duration), abs=0.01)
        assert panel.has_data()
    save_track_page(full_store, track_id, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StoreError, match=r"page\.nonsense"):
        save_track_page(full_store, track_id, tmp_path / "page.nonsense")


def test_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError, match="mirstore extract"):
        FeatureStore(tmp_path)


def test_labels_of_a_manifest_become_columns(empty_project: Any) -> None:
    empty_project.add_song("a.wav", seconds=2.0)
    empty_project.add_song("b.wav", seconds=2.0, seed=1)
    (empty_project.folder / "songs.csv").write_text(
        "uri,artist,year,size\nmusic/a.wav,Ada,1999,big\nmusic/b.wav,Bo,,\n"
    )
    empty_project.write_catalog(AUDIO, LOGMEL)
    text = empty_project.catalog.read_text().replace("{path: ./music}", "{manifest: songs.csv}")
    empty_project.catalog.write_text(text)
    empty_project.extract()
    tracks = empty_project.store.tracks
    assert list(tracks.query("artist == 'Ada'").index) == ["demo/music/a.wav"]
    assert tracks.loc["demo/music/a.wav", "year"] == 1999
    assert np.isnan(tracks.loc["demo/music/b.wav", "year"])
    # A label named as one of the index's own columns does not hide it.
    assert tracks.loc["demo/music/a.wav", "label_size"] == "big"
    assert tracks.loc["demo/music/a.wav", "size"] > 1000
    # A changed label changes the row, not the features.
    csv = empty_project.folder / "songs.csv"
    csv.write_text(csv.read_text().replace("Ada", "Eva"))
    report = empty_project.extract()
    assert (report.songs, report.updated) == (0, 1)
    assert empty_project.store.tracks.loc["demo/music/a.wav", "artist"] == "Eva"


def test_status_counts_what_is_there(full_store: FeatureStore) -> None:
    from pipeline.store.summary import features_table, summary

    facts = summary(full_store)
    assert (facts["tracks"], facts["failed"], facts["orphan_parts"]) == (3, 0, 0)
    assert facts["hours"] == pytest.approx(full_store.tracks["duration_s"].sum() / 3600)
    table = features_table(full_store)
    assert list(table["feature"]) == ["audio", "logmel", "mfcc", "embedding"]
    assert (table["chunks"] == 6).all()
    on_disk = sum(
        file.stat().st_size
        for folder in (full_store.location.path / "parts").glob("*/logmel@*")
        for file in (folder / "c").rglob("*")
        if file.is_file()
    )
    assert table.set_index("feature").loc["logmel", "bytes"] == on_disk
    json.dumps(facts, default=str)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_an_embedding_made_from_the_cache_is_the_same_bits(
    full_store: FeatureStore, tmp_path: Path, scheduler: str, precision: str
) -> None:
    """Made with the audio at hand, and later from the cached log-mel, where the songs have gone."""
    import shutil

    folder = tmp_path / "later"
    shutil.copytree(full_store.location.path.parent, folder)
    catalog = folder / "catalog.yaml"
    text = catalog.read_text()
    line = next(line for line in text.splitlines() if line.strip().startswith("embedding:"))
    catalog.write_text(text.replace(line, line.replace("}", f", precision: {precision}}}")))
    shutil.rmtree(folder / "store")
    extract(catalog, scheduler=scheduler)
    made = FeatureStore(catalog)["embedding"]
    expected = {track_id: made.stored(track_id).tobytes() for track_id in made.tracks.index}

    shutil.rmtree(folder / "store")
    catalog.write_text(text.replace(line, ""))
    extract(catalog, scheduler=scheduler)
    for song in (folder / "music").iterdir():
        if song.suffix == ".ogg":
            song.write_bytes(song.read_bytes())  # touched: the row changes, no audio is decoded
    catalog.write_text(text.replace(line, line.replace("}", f", precision: {precision}}}")))
    report = extract(catalog, scheduler=scheduler)
    assert (report.songs, report.computed) == (0, 3)
    later = FeatureStore(catalog)["embedding"]
    assert {track_id: later.stored(track_id).tobytes() for track_id in later.tracks.index} == expected
    settings = json.loads(later.store.arrays.query("kind == 'cnn'")["computed_with"].iloc[0])
    assert settings["precision"] in ("float32", "bfloat16")
    assert settings["device"]
