"""A collection with one of each bad file: good songs are stored, each bad one is a row."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from pipeline import FeatureStore

CATALOG = """\
version: 1
store: ./store
grid: {hop_length: 256, frames_per_chunk: 128, min_tail_s: 0.5}
collections:
  all: {path: ./music}
features:
  audio: {kind: audio}
  logmel: {kind: log_mel, from: audio}
"""

# One file goes while the run is under way: after the plan, before its job.
SCRIPT = """\
import os, sys
from pipeline import extract
if __name__ == "__main__":
    report = extract(sys.argv[1], workers=1, on_plan=lambda plan: os.unlink(sys.argv[2]))
    print(report.songs, report.failures)
"""


def song(rate: int = 44_100, seconds: float = 6.0, channels: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(rate + channels)
    t = np.arange(round(rate * seconds)) / rate
    tone = 0.4 * np.sin(2 * np.pi * 220 * t)[:, None] + 0.05 * rng.standard_normal((len(t), channels))
    return tone.astype(np.float32)


def write_m4a(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.T.copy(), format="fltp", layout="mono")
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.fixture
def bad_collection(tmp_path: Path) -> Path:
    music = tmp_path / "music"
    music.mkdir()
    (tmp_path / "catalog.yaml").write_text(CATALOG)

    # Good ones, unusual but sound.
    sf.write(music / "plain song.ogg", song(), 44_100)
    sf.write(music / "eight channels.flac", song(channels=8), 44_100)
    sf.write(music / "high rate.wav", song(192_000), 192_000)
    sf.write(music / "low rate.wav", song(8_000), 8_000)
    sf.write(music / "silence.wav", np.zeros(44_100 * 3), 44_100)
    sf.write(music / "one sample.wav", np.array([0.5]), 44_100)
    sf.write(music / "cœur #1 50%.ogg", song(), 44_100)

    # Cut or hurt: what decodes is kept.
    for name in ("cut.mp3", "cut.ogg", "cut.flac", "hurt.mp3"):
        sf.write(music / name, song(seconds=20), 44_100)
    for name in ("cut.mp3", "cut.ogg", "cut.flac"):
        cut(music / name, 0.6)
    hurt = bytearray((music / "hurt.mp3").read_bytes())
    middle = len(hurt) // 2
    hurt[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    (music / "hurt.mp3").write_bytes(hurt)

    # Bad: a row each.
    (music / "zero bytes.mp3").touch()
    (music / "text.mp3").write_text("Dear listener, " * 200)
    sf.write(music / "header only.wav", song(), 44_100)
    os.truncate(music / "header only.wav", 44)
    write_m4a(music / "cut.m4a", song(seconds=20), 44_100)
    cut(music / "cut.m4a", 0.6)  # its table of contents stands at the end
    sf.write(music / "unreadable.wav", song(), 44_100)
    (music / "unreadable.wav").chmod(0)
    sf.write(music / "vanishing.wav", song(), 44_100)
    (music / "broken link.ogg").symlink_to(music / "nowhere.ogg")
    return tmp_path


def without_root_rights(command: list[str]) -> list[str]:
    """A command run without root's right to read every file."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("run as root, and setpriv is not there to give up reading every file")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search", *command]


def test_each_bad_file_is_a_row_and_stops_nothing(bad_collection: Path) -> None:
    script = bad_collection / "run.py"
    script.write_text(SCRIPT)
    command = without_root_rights(
        [
            sys.executable,
            str(script),
            str(bad_collection / "catalog.yaml"),
            str(bad_collection / "music/vanishing.wav"),
        ]
    )
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    store = FeatureStore(bad_collection / "catalog.yaml")
    failures = store.failures
    expected = {
        "all/zero bytes.mp3": "empty",
        "all/text.mp3": "",
        "all/header only.wav": "",
        "all/cut.m4a": "",
        "all/unreadable.wav": "ermission",
        "all/vanishing.wav": "vanished|no such file|does not exist",
        "all/broken link.ogg": "link",
    }
    assert set(failures.index) == set(expected)
    assert failures["reason"].str.fullmatch(r"[^\n]{4,300}").all()
    for track_id, words in expected.items():
        assert any(word in failures.loc[track_id, "reason"] for word in words.split("|")), failures.loc[
            track_id
        ]
    assert not failures["reason"].str.contains("Errno|Traceback|unexpected").any(), failures

    tracks = store.tracks
    assert set(tracks.index) == {
        f"all/{name}"
        for name in (
            "plain song.ogg", "eight channels.flac", "high rate.wav", "low rate.wav", "silence.wav",
            "one sample.wav", "cœur #1 50%.ogg", "cut.mp3", "cut.ogg", "cut.flac", "hurt.mp3",
        )
    }  # fmt: skip
    assert set(tracks.index[tracks["truncated"].notna()]) == {
        f"all/{name}" for name in ("cut.mp3", "cut.ogg", "cut.flac", "hurt.mp3")
    }
    durations = tracks["duration_s"]
    for name in ("plain song.ogg", "eight channels.flac", "high rate.wav", "low rate.wav"):
        assert durations[f"all/{name}"] == pytest.approx(6.0, abs=0.01)
    for name in ("cut.mp3", "cut.ogg", "cut.flac"):
        assert 8.0 < durations[f"all/{name}"] < 17.0
    assert durations["all/hurt.mp3"] > 15.0
    for name in ("high rate.wav", "low rate.wav", "eight channels.flac"):
        spectrum = np.abs(np.fft.rfft(store["audio"].values(f"all/{name}").reshape(-1)[:60_000]))
        assert np.fft.rfftfreq(60_000, 1 / 12_000)[spectrum.argmax()] == pytest.approx(220, abs=1)
    assert not store["audio"].stored("all/silence.wav").any()

    again = subprocess.run(
        without_root_rights(
            [str(Path(sys.executable).with_name("mirstore")), "extract", "--json", "-c", "catalog.yaml"]
        ),
        cwd=bad_collection, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["songs"] == 0
