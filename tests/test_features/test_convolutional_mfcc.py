"""MFCC as convolutions against scipy's DCT and librosa's chain."""

import librosa
import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn

from features.convolutional_mfcc import ConvolutionalMfcc, mfcc_kernels
from features.errors import FeatureInputError
from features.spectral import LogMelParameters


def test_layer_with_cosine_kernels_is_the_dct() -> None:
    log_mel = np.random.default_rng(0).normal(-9.0, 4.0, (96, 1366)).astype(np.float32)
    layer = nn.Conv2d(1, 90, (96, 1), stride=(96, 1), bias=False)
    with torch.no_grad():
        layer.weight.copy_(mfcc_kernels(96, 90)[:, None, :, None])
        found = layer(torch.from_numpy(log_mel)[None, None])[0, :, 0].numpy()
    expected = scipy.fft.dct(log_mel.astype(np.float64), type=2, norm="ortho", axis=0)[:90]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [
        LogMelParameters(),
        LogMelParameters(n_fft=1024, hop_length=512, window="hann", n_mels=64, htk=False, norm="slaney"),
    ],
)
def test_network_is_librosas_chain(parameters: LogMelParameters) -> None:
    generator = np.random.default_rng(1)
    times = np.arange(3 * 12_000) / 12_000
    audio = 0.3 * np.sin(2 * np.pi * 440 * times**1.5) + 0.05 * generator.normal(size=len(times))
    mel = librosa.feature.melspectrogram(
        y=audio.astype(np.float64),
        sr=12_000,
        n_fft=parameters.n_fft,
        hop_length=parameters.hop_length,
        window=parameters.window,
        center=True,
        pad_mode="constant",
        n_mels=parameters.n_mels,
        htk=parameters.htk,
        norm=parameters.norm,
    )
    expected = scipy.fft.dct(np.log(np.maximum(mel, 1e-10)), type=2, norm="ortho", axis=0)[:40]
    with torch.no_grad():
        found = ConvolutionalMfcc(parameters, n_mfcc=40)(torch.from_numpy(audio.astype(np.float32))[None])
    assert found.shape == (1, 40, 1 + len(audio) // parameters.hop_length)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-3)


def test_every_filter_learns() -> None:
    network = ConvolutionalMfcc(n_mfcc=13)
    audio = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 4096)).astype(np.float32))
    network(audio).square().sum().backward()
    assert sorted(name for name, _ in network.named_parameters()) == ["cosine", "mel", "stft"]
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0


def test_too_many_coefficients() -> None:
    with pytest.raises(FeatureInputError, match="n_mfcc"):
        mfcc_kernels(40, 41)


def test_decibels_are_refused() -> None:
    with pytest.raises(FeatureInputError, match="natural logarithm"):
        ConvolutionalMfcc(LogMelParameters(log="db"))


def test_audio_needs_a_clip_axis() -> None:
    with pytest.raises(FeatureInputError, match="clip, sample"):
        ConvolutionalMfcc()(torch.zeros(4096))
