"""Exports are read back with NumPy, pandas, zarr and xarray alone, and are what the store holds."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pipeline.export_formats
from pipeline.errors import StoreDamagedError, StoreError, StoreWriteError, UnknownNameError
from pipeline.export_formats import FORMATS, safe_path
from pipeline.exports import export
from pipeline.labels import add_labels

FEATURES = ["audio", "logmel", "wide", "mfcc"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, project_in: Any) -> Any:
    """Five songs with every kind of frame feature, and labels."""
    project = project_in(tmp_path_factory.mktemp("export"))
    names = {"a.wav": 3.0, "sub/b?.wav": 1.0, "sub/a.wav": 4.2, "c.wav": 0.3, "Ünï [x].wav": 2.0}
    for seed, (name, seconds) in enumerate(names.items()):
        project.add_song(name, seconds=seconds, seed=seed)
    project.write_catalog(
        "audio: {kind: audio}",
        "logmel: {kind: log_mel, from: audio, n_mels: 32}",
        "wide: {kind: log_mel, from: audio, n_mels: 48, n_fft: 1024}",
        "mfcc: {kind: mfcc, from: logmel, n_mfcc: 12}",
    )
    project.extract()
    labels = {
        "track_id": ["demo/a.wav", "demo/c.wav"],
        "genre": ["folk", None],
        "tags": [["x", "y"], None],
        "n": [1, 2],
    }
    add_labels(project.catalog, pd.DataFrame(labels))
    return project


def checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after comparing it with the files."""
    manifest: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["_manifest.json"]
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in found.items()
    }
    return manifest


def rows_of(folder: Path, manifest: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by track, read without mirstore."""
    shapes = {feature["name"]: feature["shape"] for feature in manifest["features"]}
    found: dict[str, dict[str, np.ndarray]] = {}
    tables: dict[str, Any] = {}
    for track in manifest["tracks"]:
        file = folder / track["file"]
        span = slice(track["first_row"], track["first_row"] + track["rows"])
        if manifest["format"] == "npz":
            with np.load(file, allow_pickle=False) as arrays:
                found[track["id"]] = dict(arrays)
        elif manifest["format"] == "parquet":
            if file not in tables:
                tables[str(file)] = pd.read_parquet(file)
            rows = tables[str(file)].iloc[span]
            assert set(rows["track_id"]) == {track["id"]}
            assert list(rows["chunk"]) == list(range(track["rows"]))
            found[track["id"]] = {
                name: np.stack(rows[name].to_list()).reshape(-1, *shape) for name, shape in shapes.items()
            } | {name: rows[name].to_numpy() for name in ("start_s", "valid_frames")}
        else:
            group = zarr.open_group(file, mode="r")
            assert set(group["track_id"][span]) == {track["id"]}
            found[track["id"]] = {name: group[name][span] for name in (*shapes, "start_s", "valid_frames")}
    return found


@pytest.mark.parametrize("format", list(FORMATS))
def test_what_is_read_back_is_what_the_store_holds(exported: Any, tmp_path: Path, format: str) -> None:
    store = exported.store
    report = export(store, tmp_path / "out", features=FEATURES, format=format)
    manifest = checked_manifest(tmp_path / "out")
    assert (report.tracks, report.chunks, report.failed) == (5, int(store.tracks["n_chunks"].sum()), {})
    assert [track["id"] for track in manifest["tracks"]] == list(store.tracks.index)
    assert manifest["snapshot"] == store.snapshot
    for track_id, arrays in rows_of(tmp_path / "out", manifest).items():
        for name in FEATURES:
            assert arrays[name].dtype == np.float32
            np.testing.assert_array_equal(arrays[name], store[name].values(track_id))
        reference = store["mfcc"].track(track_id)
        np.testing.assert_array_equal(arrays["start_s"], reference["start_s"])
        np.testing.assert_array_equal(arrays["valid_frames"], reference["valid_frames"])
    for feature in manifest["features"]:
        stored = store[feature["name"]]
        assert (feature["fingerprint"], feature["parameters"]) == (stored.fingerprint, stored.parameters)
        assert (tuple(feature["shape"]), feature["stored_dtype"]) == (stored.row_shape, str(stored.dtype))
    labels = {track["id"]: track["labels"] for track in manifest["tracks"]}
    assert labels["demo/a.wav"] == {"genre": "folk", "tags": ["x", "y"], "n": 1}
    assert (labels["demo/c.wav"], labels["demo/sub/a.wav"]) == ({"n": 2}, {})
    tracks = pd.read_csv(tmp_path / "out" / "_tracks.csv", index_col="track_id")
    assert list(tracks.index) == list(store.tracks.index)
    np.testing.assert_allclose(tracks["duration_s"], store.tracks["duration_s"])
    assert (tracks.loc["demo/a.wav", "genre"], json.loads(tracks.loc["demo/a.wav", "tags"])) == (
        "folk",
        ["x", "y"],
    )
    assert str(exported.folder) not in (tmp_path / "out" / "_tracks.csv").read_text()


def test_the_zarr_group_opens_as_a_dataset(exported: Any, tmp_path: Path) -> None:
    export(exported.store, tmp_path / "out", features=FEATURES, format="zarr")
    dataset = xr.open_zarr(tmp_path / "out")
    assert set(dataset.data_vars) == set(FEATURES)
    assert set(dataset.coords) == {"track_id", "start_s", "valid_frames"}
    assert (dataset["logmel"].dims, dataset["wide"].dims) == (
        ("chunk", "mel", "frame"),
        ("chunk", "mel_48", "frame"),
    )
    one = dataset["mfcc"].isel(chunk=(dataset["track_id"] == "demo/sub/a.wav").values)
    np.testing.assert_array_equal(one, exported.store["mfcc"].values("demo/sub/a.wav"))
    expected = exported.store.dataset(["mfcc"]).sortby(["track_id", "start_s"])
    np.testing.assert_array_equal(dataset["track_id"], expected["track_id"])
    np.testing.assert_array_equal(dataset["start_s"], expected["start_s"])
    group = zarr.open_group(tmp_path / "out", mode="r")
    assert set(group.array_keys()) == {*FEATURES, "track_id", "start_s", "valid_frames"}
    assert set(xr.open_dataset(tmp_path / "out", engine="zarr").data_vars) == set(FEATURES)


def test_the_folder_opens_as_one_table(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pandas and with Arrow, of several files beside the manifest."""
    monkeypatch.setattr(pipeline.export_formats, "PARQUET_FILE_BYTES", 10_000)
    out = tmp_path / "out"
    export(exported.store, out, features=["mfcc", "logmel"], format="parquet")
    assert len(list(out.glob("*.parquet"))) > 1
    table = pd.read_parquet(out)
    assert list(table.columns) == ["track_id", "chunk", "start_s", "valid_frames", "mfcc", "logmel"]
    for track_id, rows in table.groupby("track_id"):
        for name in ("mfcc", "logmel"):
            stored = exported.store[name]
            values = np.stack(rows[name].to_list()).reshape(-1, *stored.row_shape)
            np.testing.assert_array_equal(values, stored.values(track_id))
    assert list(table["track_id"].unique()) == list(exported.store.tracks.index)
    dataset = pyarrow.dataset.dataset(out)
    assert dataset.to_table(columns=["track_id"])["track_id"].to_pylist() == list(table["track_id"])
    of_one = dataset.to_table(filter=pyarrow.dataset.field("track_id") == "demo/sub/a.wav")
    assert of_one["chunk"].to_pylist() == list(range(len(of_one)))


def test_large_tables_are_split_between_tracks(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.export_formats, "PARQUET_FILE_BYTES", 10_000)
    monkeypatch.setattr(pipeline.export_formats, "_ROW_GROUP_BYTES", 8_000)
    export(exported.store, tmp_path / "out", features=["mfcc"], format="parquet")
    manifest = checked_manifest(tmp_path / "out")
    assert len({track["file"] for track in manifest["tracks"]}) > 2
    for track_id, arrays in rows_of(tmp_path / "out", manifest).items():
        np.testing.assert_array_equal(arrays["mfcc"], exported.store["mfcc"].values(track_id))


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_damaged_track_is_named_and_the_rest_is_there(
    exported: Any, project_in: Any, tmp_path: Path, format: str
) -> None:

    shutil.copytree(exported.folder, tmp_path / "copy")
    project = project_in(tmp_path / "copy")
    shard = next(
        file for file in sorted(project.store_folder.glob("parts/*/mfcc@*/c/**/*")) if file.is_file()
    )
    content = bytearray(shard.read_bytes())
    content[100] ^= 0xFF
    shard.write_bytes(content)
    broken = []
    for track_id in project.store.tracks.index:
        try:
            project.store["mfcc"].values(track_id)
        except StoreDamagedError:
            broken.append(track_id)
    assert len(broken) == 1
    done = project.run("export", "out", "--feature", "mfcc", "--feature", "logmel", "--format", format)
    assert done.returncode == 1
    assert broken[0] in done.stdout
    manifest = checked_manifest(project.folder / "out")
    assert list(manifest["failed"]) == broken
    rows = rows_of(project.folder / "out", manifest)
    assert sorted([*rows, *broken]) == list(project.store.tracks.index)
    for track_id, arrays in rows.items():
        np.testing.assert_array_equal(arrays["mfcc"], project.store["mfcc"].values(track_id))


def test_the_command(exported: Any) -> None:
    before = exported.store.snapshot - 1
    arguments = (
        "--feature",
        "mfcc",
        "--where",
        "duration_s > 1.5",
        "--collection",
        "demo",
        "--snapshot",
        str(before),
    )
    report = exported.run_json("export", "some", *arguments)
    assert (report["tracks"], report["format"], report["failed"]) == (3, "npz", {})
    manifest = checked_manifest(exported.folder / "some")
    assert manifest["snapshot"] == before
    assert all(track["labels"] == {} for track in manifest["tracks"])  # added later
    assert (exported.folder / "some" / "tracks" / "demo" / "sub" / "a.wav.npz").is_file()
    again = exported.run("export", "some", "--feature", "mfcc")
    assert (again.returncode, "not empty" in again.stderr) == (2, True)
    plain = exported.run("export", "all", "--feature", "mfcc", "--format", "parquet")
    assert plain.stdout.startswith("5 tracks, ")


def test_a_killed_export_has_no_manifest(exported: Any, tmp_path: Path) -> None:
    def killed(progress: Any) -> None:
        if progress.songs_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(exported.store, tmp_path / "out", features=["mfcc"], format="npz", on_progress=killed)
    assert not (tmp_path / "out" / "_manifest.json").exists()
    with pytest.raises(StoreError, match="not empty"):
        export(exported.store, tmp_path / "out", features=["mfcc"], format="npz")


def test_what_cannot_be_exported(exported: Any, tmp_path: Path) -> None:
    store = exported.store
    with pytest.raises(StoreError, match=r"Did you mean 'parquet'"):
        export(store, tmp_path / "out", features=["mfcc"], format="parket")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'mfcc'"):
        export(store, tmp_path / "out", features=["mfc"], format="npz")
    with pytest.raises(StoreError, match="nothing to export"):
        export(store.select("duration_s > 1000"), tmp_path / "out", features=["mfcc"], format="npz")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreWriteError, match="cannot write to"):
        export(store, tmp_path / "file", features=["mfcc"], format="npz")


@given(st.text(min_size=1, max_size=300).filter(lambda text: "\0" not in text))
def test_paths_lead_nowhere_else(track_id: str) -> None:
    path = safe_path(track_id)
    parts = path.split("/")
    assert len(parts) == len(track_id.split("/"))
    for part in parts:
        assert part not in ("", ".", "..")
        assert len(part.encode()) < 230
        assert part.isprintable() or not any(ord(c) < 32 or ord(c) == 127 for c in part)
        assert not set(part) & set('\\:*?"<>|')
    if (
        track_id.isascii()
        and track_id.replace("/", "a").replace(" ", "a").isalnum()
        and "//" not in f"/{track_id}/"
    ):
        assert path.replace("%20", " ") == track_id or " " in track_id or len(track_id) > 200


def test_names_that_some_systems_confuse_get_files_of_their_own(exported: Any, tmp_path: Path) -> None:
    files = FORMATS["npz"](tmp_path, {}, 10)
    one = np.zeros(1)
    names = [
        "demo/a",
        "demo/A",
        "demo/a.npz/x",
        "demo/../a",
        "demo/e\u0301",
        "demo/\xe9",
        "demo/" + "x" * 300,
    ]
    where = [files.add(name, {}, one, one.astype(np.int32))[0] for name in names]
    assert len({file.casefold() for file in where}) == len(names)
    assert all((tmp_path / "tracks") in (tmp_path / file).resolve().parents for file in where)
    assert where[0] == "tracks/demo/a.npz"
