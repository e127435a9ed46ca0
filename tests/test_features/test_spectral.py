"""Log-mel and MFCC against closed forms, librosa and scipy."""

import librosa
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.errors import FeatureInputError
from features.spectral import (
    LogMelParameters,
    band_centres_hz,
    cosine_basis,
    log_mel,
    mel_filter_bank,
    mfcc,
    periodic_window,
)


def librosa_log_mel(samples: NDArray[np.float32], p: LogMelParameters) -> NDArray[np.float32]:
    mel = librosa.feature.melspectrogram(
        y=samples,
        sr=p.sample_rate,
        n_fft=p.n_fft,
        hop_length=p.hop_length,
        window=p.window,
        center=True,
        pad_mode="constant",
        power=2.0,
        n_mels=p.n_mels,
        fmin=p.fmin,
        fmax=p.fmax,
        htk=p.htk,
        norm=p.norm,
    )
    if p.log == "ln":
        return np.log(np.maximum(mel**p.exponent, p.floor))
    return librosa.power_to_db(mel**p.exponent, ref=1.0, amin=p.floor, top_db=p.top_db)


def noise(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32) * np.float32(0.1)


@pytest.mark.parametrize("frequency", [100.0, 440.0, 1000.0, 3000.0])
def test_a_sine_peaks_in_the_band_nearest_its_frequency(frequency: float) -> None:
    tone = np.sin(2 * np.pi * frequency * np.arange(24_000) / 12_000).astype(np.float32)
    parameters = LogMelParameters(n_mels=40)
    peak = log_mel(tone, parameters)[:, 40].argmax()
    centres = band_centres_hz(parameters)
    assert abs(centres[peak] - frequency) <= np.diff(centres)[max(0, peak - 1) : peak + 1].max()


def test_silence_is_the_floor() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(1000, np.float32)), np.log(1e-10), rtol=1e-6)


def test_twelve_thousand_to_a_thousand_follows_the_htk_formula() -> None:
    # 2595 log10(1 + f / 700) (thesis, equation 2.8): equal steps in mel between 0 Hz and 6 kHz.
    centres = band_centres_hz(LogMelParameters())
    mels = 2595 * np.log10(1 + centres / 700)
    np.testing.assert_allclose(np.diff(mels), 2595 * np.log10(1 + 6000 / 700) / 97, rtol=1e-9)


@pytest.mark.parametrize("htk", [True, False])
@pytest.mark.parametrize("norm", [None, "slaney"])
@pytest.mark.parametrize(
    ("n_fft", "n_mels", "fmin", "fmax"), [(512, 96, 0.0, None), (2048, 128, 30.0, 5000.0)]
)
def test_filter_bank_is_librosas(
    htk: bool, norm: str | None, n_fft: int, n_mels: int, fmin: float, fmax: float | None
) -> None:
    parameters = LogMelParameters(n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=norm)  # type: ignore[arg-type]
    expected = librosa.filters.mel(
        sr=12_000, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax or 6000.0, htk=htk, norm=norm
    )
    np.testing.assert_allclose(mel_filter_bank(parameters), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["hann", "hamming"])
def test_windows_are_librosas(name: str) -> None:
    np.testing.assert_allclose(periodic_window(name, 512), librosa.filters.get_window(name, 512), atol=1e-7)  # type: ignore[arg-type]


VARIANTS = [
    LogMelParameters(),
    LogMelParameters(window="hann", htk=False, norm="slaney", log="db"),
    LogMelParameters(window="hann", htk=False, norm="slaney", log="db", exponent=2.0, top_db=80.0),
    LogMelParameters(n_fft=2048, n_mels=64, fmin=40.0),
]


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")  # librosa's, of short signals
@pytest.mark.parametrize("parameters", VARIANTS)
@pytest.mark.parametrize("n", [1, 255, 256, 257, 5000, 120_000])
def test_log_mel_is_librosas(parameters: LogMelParameters, n: int) -> None:
    samples = noise(n)
    np.testing.assert_allclose(
        log_mel(samples, parameters), librosa_log_mel(samples, parameters), atol=1e-3, rtol=1e-5
    )


@settings(max_examples=25)
@given(st.floats(0.01, 50.0))
def test_gain_moves_every_band_by_the_same_amount(gain: float) -> None:
    samples = noise(4096) + np.float32(0.5)
    moved = log_mel(samples * np.float32(gain)) - log_mel(samples)
    np.testing.assert_allclose(moved, 2 * np.log(gain), atol=2e-3)


def test_mfcc_is_scipys_dct() -> None:
    spectrogram = np.random.default_rng(1).normal(-8, 4, (3, 96, 50)).astype(np.float32)
    expected = scipy.fft.dct(spectrogram.astype(np.float64), type=2, norm="ortho", axis=1)[:, :90]
    np.testing.assert_allclose(mfcc(spectrogram), expected, atol=1e-4)


def test_all_coefficients_keep_the_energy() -> None:
    basis = cosine_basis(96, 96).astype(np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(96), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: log_mel(np.zeros(0, np.float32)), "empty"),
        (lambda: log_mel(np.zeros((2, 100), np.float32)), "one-dimensional"),
        (lambda: LogMelParameters(n_fft=511), "n_fft"),
        (lambda: LogMelParameters(hop_length=0), "hop_length"),
        (lambda: LogMelParameters(fmax=9000.0), "fmax"),
        (lambda: LogMelParameters(top_db=80.0), "top_db"),
        (lambda: mfcc(np.zeros((96, 4), np.float32), n_mfcc=97), "n_mfcc"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: object, word: str) -> None:
    with pytest.raises(FeatureInputError, match=word):
        call()  # type: ignore[operator]
