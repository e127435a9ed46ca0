"""The synthetic collection: what its plans promise is what its samples hold."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sample import (
    FORM,
    PITCHES,
    PlannedSection,
    read_lab,
    render_song,
    song_plan,
    write_lab,
    write_sample_collection,
)

RATE = 22_050


def song(
    seed: int = 0, *, tempo: float = 120.0, key: str = "C"
) -> tuple[tuple[PlannedSection, ...], NDArray[np.float32]]:
    plan = song_plan(tempo=tempo, duration_s=60.0)
    return plan, render_song(plan, np.random.default_rng(seed), tempo=tempo, key=key, sample_rate=RATE)


def section(samples: NDArray[np.float32], planned: PlannedSection) -> NDArray[np.float32]:
    return samples[round(planned.start_s * RATE) : round(planned.end_s * RATE)].mean(axis=1)


@settings(max_examples=50)
@given(st.floats(60, 200), st.floats(30, 400))
def test_plan_is_whole_bars_without_gaps(tempo: float, duration_s: float) -> None:
    plan = song_plan(tempo=tempo, duration_s=duration_s)
    assert tuple(planned.label for planned in plan) == FORM
    assert plan[0].start_s == 0
    assert all(before.end_s == after.start_s for before, after in itertools.pairwise(plan))
    bars = [(planned.end_s - planned.start_s) * tempo / 240 for planned in plan]
    np.testing.assert_allclose(bars, np.round(bars), atol=1e-6)
    assert abs(plan[-1].end_s - duration_s) <= len(plan) * 240 / tempo


def test_sections_of_one_label_sound_alike_and_others_do_not() -> None:
    plan, samples = song()
    assert samples.dtype == np.float32
    assert samples.shape == (round(plan[-1].end_s * RATE), 2)
    assert 0.7 < np.abs(samples).max() <= 0.8 + 1e-6
    for i, first in enumerate(plan):
        for second in plan[i + 1 :]:
            a, b = section(samples, first), section(samples, second)
            n = min(len(a), len(b))
            correlation = np.corrcoef(a[:n], b[:n])[0, 1]
            if first.label == second.label:
                assert correlation > 0.99
            else:
                assert correlation < 0.9


def test_onsets_lie_on_the_beats() -> None:
    tempo = 100.0
    plan, samples = song(tempo=tempo)
    intro = section(samples, plan[0]).astype(np.float64)
    hop = RATE // 100
    frames = intro[: len(intro) // hop * hop].reshape(-1, hop)
    energy = np.log((frames**2).sum(axis=1) + 1e-4)
    rise = np.maximum(np.diff(energy, prepend=energy[0]), 0)
    beats = np.arange(1, round(plan[0].end_s * tempo / 60)) * 60 / tempo * 100  # in frames of 10 ms
    near = np.zeros(len(rise), bool)
    near[(np.round(beats)[:, None] + np.arange(-1, 3)).astype(int).ravel() % len(rise)] = True
    assert rise[near].sum() > 2 * rise[~near].sum() * near.mean() / (1 - near.mean())
    period = np.abs(np.fft.rfft(rise - rise.mean(), 8 * len(rise)))
    bpm = np.fft.rfftfreq(8 * len(rise), 0.01) * 60
    band = (bpm > 70) & (bpm < 140)
    assert bpm[band][period[band].argmax()] == pytest.approx(tempo, rel=0.03)


def test_key_is_the_one_named() -> None:
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    for key in ("C", "F#"):
        _, samples = song(key=key)
        spectrum = np.abs(np.fft.rfft(samples.mean(axis=1)))
        frequency = np.fft.rfftfreq(len(samples), 1 / RATE)
        audible = (frequency > 120) & (frequency < 1000)
        pitch = np.round(12 * np.log2(frequency[audible] / 440) + 69).astype(int) % 12
        chroma = np.bincount(pitch, weights=spectrum[audible] ** 2, minlength=12)
        inside = chroma[(PITCHES.index(key) + scale) % 12].sum() / chroma.sum()
        assert inside > 0.8


def test_same_seed_same_samples() -> None:
    np.testing.assert_array_equal(song(3)[1], song(3)[1])
    assert not np.array_equal(song(3)[1], song(4)[1])


@pytest.mark.parametrize("ending", [".ogg", ".flac", ".wav", ".mp3"])
def test_collection_matches_its_plans(tmp_path: Path, ending: str) -> None:
    songs = write_sample_collection(tmp_path / "new" / "folder", n_songs=2, duration_s=20.0, ending=ending)
    assert len({made.key for made in songs}) == 2
    for made in songs:
        assert sf.info(made.path).duration == pytest.approx(
            made.plan[-1].end_s, abs=0.06 if ending == ".mp3" else 0.01
        )
        assert sf.info(made.path).channels == 2
        read = read_lab(made.path.with_suffix(".lab"))
        assert [planned.label for planned in read] == [planned.label for planned in made.plan]
        np.testing.assert_allclose(
            [(planned.start_s, planned.end_s) for planned in read],
            [(planned.start_s, planned.end_s) for planned in made.plan],
            atol=1e-6,
        )


def test_a_song_does_not_depend_on_how_many_are_written(tmp_path: Path) -> None:
    alone = write_sample_collection(tmp_path / "1", n_songs=1, seed=5, duration_s=15.0, ending=".wav")
    among = write_sample_collection(tmp_path / "3", n_songs=3, seed=5, duration_s=15.0, ending=".wav")
    assert alone[0].path.read_bytes() == among[0].path.read_bytes()
    assert (alone[0].tempo, alone[0].plan) == (among[0].tempo, among[0].plan)


def test_lab_keeps_labels_with_spaces(tmp_path: Path) -> None:
    plan = (PlannedSection(0.0, 1.5, "long intro"), PlannedSection(1.5, 4.25, "A"))
    write_lab(tmp_path / "a.lab", plan)
    assert read_lab(tmp_path / "a.lab") == plan


def test_unknown_ending_and_empty_plan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ending"):
        write_sample_collection(tmp_path, ending=".doc")
    with pytest.raises(ValueError, match="tempo"):
        song_plan(tempo=0, duration_s=60)
