"""The benchmarks run, and their baseline does the same work as mirstore."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from features.inference import Embedder
from features.weights import load_weights
from pipeline.sample import write_sample_collection
from pipeline.store.reading import FeatureStore

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SONG_S = 5.0


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    write_sample_collection(folder, n_songs=2, duration_s=SONG_S)
    return folder


@pytest.fixture(scope="module")
def filelist(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "files.txt"
    path.write_text("".join(f"{song}\n" for song in sorted(music.glob("*.ogg"))), "utf-8")
    return path


def module_of(script: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        specification = importlib.util.spec_from_file_location("benchmark", BENCHMARKS / script)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    return module_of("extract.py")


def test_rounds_and_second_run_report(music: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    small = ("--parts", "a,b,d,f", "--rounds", 1, "--second-run-tracks", 3, "--scratch", tmp_path)
    printed = run("extract.py", "--music", music, "--out", out, *small)
    results = json.loads(out.read_text("utf-8"))
    (turn,) = results["rounds"]
    assert list(turn) == ["a", "b", "d"]
    assert {figures["songs"] for figures in turn.values()} == {2}
    assert list(results["ratios"]) == ["mirstore without embeddings / bare decoding, steady"]
    assert results["second_run"]["bytes_read"] in (0, None)
    for line in ("| vorbis | 2 |", "| (a) librosa", "| log_mel |", "Second run over 3"):
        assert line in printed
    assert list(tmp_path.iterdir()) == [out]


def test_long_tracks_have_their_length(filelist: Path, harness: ModuleType, tmp_path: Path) -> None:
    songs = [Path(line) for line in filelist.read_text("utf-8").splitlines()]
    harness.write_track(tmp_path / "long.flac", songs, 30.0)
    assert soundfile.info(tmp_path / "long.flac").duration == pytest.approx(30.0)


def test_report_pairs_runs_of_a_round(harness: ModuleType) -> None:
    def turn(slowness: float) -> dict[str, dict[str, object]]:
        whole = {"wall_s": 4.0, "startup_s": 1.0, "steady_s": 2.0, "audio_s": 800.0, "worker_peak_bytes": 3e8}
        whole["cpu_s"] = 5.0
        stage_s = {"cnn": 1.0, "write": 0.5, "total": 3.0}
        baseline = {"wall_s": 12.0 * slowness, "audio_s": 800.0, "worker_peak_bytes": 9e8}
        return {"a": baseline, "c": {**whole, "stage_s": stage_s}}

    rounds = [turn(1.0), turn(2.0), turn(1.5)]
    (ratio,) = harness.ratios(rounds).values()
    assert ratio == {"min": 3.0, "median": 4.5, "max": 6.0}
    memory = {"minutes": ["120", "5"], "peak_bytes": {"c": {"120": [4.2e8], "5": [4e8]}}}
    machine = {key: "" for key in ("cpu", "cores", "memory_gib", "system", "python")}
    machine |= {"libraries": {}, "mirstore_network": "bfloat16", "baseline_network": "float32"}
    results = {
        "machine": machine, "workers": 2, "music": "", "rounds": rounds,
        "ratios": harness.ratios(rounds), "memory": memory,
    }  # fmt: skip
    report = "\n".join(harness.markdown(results))
    for row in (
        "| (c) mirstore | 4.00 | 1.00 | 2.00 | 1.00 | 5.00 | 200 | 400 | 300 |",
        "| 3.00 | **4.50** | 6.00 | >= 3 |",
        "| cnn | 25.0% |",
        "| wait for jobs | 25.0% |",
        "| (c) mirstore | 420 MB | 400 MB | +5.0% |",
    ):
        assert row in report


def test_baseline_computes_what_mirstore_computes(
    music: Path, filelist: Path, harness: ModuleType, tmp_path: Path
) -> None:
    report = json.loads(run("baselines/librosa_joblib.py", filelist, tmp_path / "npz", "--jobs", 1))
    assert report["songs"] == 2
    bench = harness.Bench(tmp_path, harness.songs(music), workers=1, precision="float32")
    bench.mirstore_into(bench.catalog(tmp_path, music))
    store = FeatureStore(tmp_path / "catalog.yaml")
    embedder = Embedder(load_weights("random:0", "thesis"), precision="float32")
    for archive, song in zip(sorted((tmp_path / "npz").iterdir()), sorted(music.glob("*.ogg")), strict=True):
        with np.load(archive) as baseline:
            assert sorted(baseline) == ["audio", "embedding", "logmel", "mfcc"]
            for name, values in baseline.items():
                stored = store[name].stored(f"bench/{song.name}")
                assert (stored.shape, stored.dtype) == (values.shape, values.dtype)
            for name, tolerance in (("audio", 2), ("logmel", 0.05), ("mfcc", 0.05)):
                difference = np.abs(store[name].stored(f"bench/{song.name}").astype(float) - baseline[name])
                # int16 audio shows in bands of near silence; the song's end reaches one frame further
                assert np.quantile(difference, 0.9) < tolerance
            np.testing.assert_allclose(
                embedder.embedding(baseline["logmel"]), baseline["embedding"], atol=0.02
            )


@pytest.mark.parametrize("decoder", ["mirstore", "soundfile"])
def test_bare_decoding_decodes_everything(filelist: Path, decoder: str) -> None:
    report = json.loads(run("baselines/bare_decode.py", filelist, "--decoder", decoder))
    assert report["songs"] == 2
    assert 0 < report["steady_s"] < report["seconds"]
    assert report["audio_s"] > SONG_S


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_traced_reads_sees_what_is_read(music: Path, harness: ModuleType, tmp_path: Path) -> None:
    songs = sorted(music.glob("*.ogg"))
    seen = harness.traced_reads(["cat", str(songs[0])], music, tmp_path)
    if "not_traced" in seen:
        pytest.skip(seen["not_traced"])
    assert seen == {"files_opened": 1, "bytes_read": songs[0].stat().st_size}


def test_index_benchmark_builds_and_measures(tmp_path: Path) -> None:
    out, plot = tmp_path / "index.json", tmp_path / "index.png"
    small = ("--sizes", 320, "--real-parts", 1, "--folder", tmp_path / "stores")
    printed = run("index.py", *small, "--out", out, "--plot", plot)
    results = json.loads(out.read_text("utf-8"))
    assert list(results["by_tracks"]) == ["320"]
    for figures in results["by_tracks"].values():
        assert {"plan, 1,000 changed", "values of a track", "merge of 1,000", "status"} <= set(figures)
        assert all(figure["wall_s"] >= 0 and figure["peak_bytes"] > 1e7 for figure in figures.values())
    assert len(FeatureStore(tmp_path / "stores" / "320" / "store").tracks) == 320
    assert "| wall time, by tracks" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_growth_is_the_slope_over_the_largest_tenfold() -> None:
    cpu_s = {1_000: 7.0, 10_000: 2.0, 100_000: 20.0}
    by_size = {size: {"plan": {"cpu_s": seconds}} for size, seconds in cpu_s.items()}
    assert module_of("index.py").exponents(by_size)["plan"] == pytest.approx(1.0)


def test_music_collects_songs_once_and_leaves_sound_effects(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    for package, duration_s in (("one", 24.0), ("effects", 4.0)):
        write_sample_collection(unpacked / package / "usr" / "share", n_songs=1, duration_s=duration_s)
    shutil.copytree(unpacked / "one", unpacked / "same")
    (unpacked / "one" / "broken.ogg").write_bytes(b"no audio")
    printed = run("music.py", tmp_path / "music", "--unpacked", unpacked, "--as-mp3", 1)
    (song,) = [path for path in (tmp_path / "music").rglob("*") if path.is_file()]
    assert (song.parent.name, song.suffix) == ("one", ".mp3")
    assert "| mp3 | 1 |" in printed
    assert "re-encoded" in printed
    assert "has music already" in run("music.py", tmp_path / "music")


def test_reading_compares_the_readers_on_a_store_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "reading.json"
    small = ("--minutes", 1, "--rounds", 2, "--batch-size", 1, "--buffer-mib", 8, 16, "--track-reads", 3)
    printed = run("reading.py", "--out", out, *small)
    results = json.loads(out.read_text("utf-8"))
    assert len(results["rounds"]) == 2
    assert {len(turn) for turn in results["rounds"]} == {8}
    assert results["rows"] >= 2
    assert results["bytes"] == results["rows"] * 96 * 1366 * 2
    ratio = results["ratios"]["sequential, float16 / zarr-python"]["wall_s"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert [run["buffer_bytes"] for run in results["memory"]] == [8 * 2**20, 16 * 2**20]
    for line in ("| shuffled, float32 | ", "| sequential, float16 / zarrs | ", "One track at random"):
        assert line in printed
