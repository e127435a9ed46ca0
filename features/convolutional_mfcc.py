"""MFCC as three layers of learnable convolution (thesis sec. 2.2.4, algorithm 5)."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from features.errors import FeatureInputError
from features.spectral import LogMelParameters, cosine_basis, mel_filter_bank, periodic_window


def mfcc_kernels(n_mels: int, n_mfcc: int) -> torch.Tensor:
    """Cosine kernels of the orthonormal DCT-II, to initialise a layer with.

    Parameters
    ----------
    n_mels : int
        Bands that a kernel spans.
    n_mfcc : int
        Kernels, at most `n_mels`; kernel k gives coefficient k.

    Returns
    -------
    Tensor of float32, shape (n_mfcc, n_mels)
    """
    return torch.from_numpy(cosine_basis(n_mels, n_mfcc).copy())


class ConvolutionalMfcc(nn.Module):
    """Audio to MFCC by convolutions alone, each initialised with the engineered filters, all learnable.

    Layer 1 has a cosine and a sine kernel for each frequency and strides by the hop length, its output is
    squared; layer 2 sums power in mel bands, its output is floored and its logarithm taken; layer 3 has cosine
    kernels. As in the thesis the second and third layer span the whole axis they reduce.

    Parameters
    ----------
    parameters : LogMelParameters, optional
        The log-mel; the thesis's (Hamming 512, hop 256, 96 HTK bands, natural logarithm) unless given.
    n_mfcc : int
        Coefficients, at most `parameters.n_mels`.
    """

    def __init__(self, parameters: LogMelParameters | None = None, *, n_mfcc: int = 90) -> None:
        super().__init__()
        parameters = parameters or LogMelParameters()
        if parameters.log != "ln" or parameters.exponent != 1.0 or parameters.top_db is not None:
            raise FeatureInputError(
                "ConvolutionalMfcc takes the natural logarithm of mel power; leave log, exponent and top_db "
                "at their defaults."
            )
        n_fft, n_bins = parameters.n_fft, parameters.n_fft // 2 + 1
        self.hop_length = parameters.hop_length
        self.n_fft = n_fft
        self.floor = parameters.floor
        angles = 2.0 * np.pi / n_fft * (np.outer(np.arange(n_bins), np.arange(n_fft)) % n_fft)
        stft = np.concatenate([np.cos(angles), -np.sin(angles)]) * periodic_window(parameters.window, n_fft)
        mel = mel_filter_bank(parameters)
        self.stft = nn.Parameter(torch.from_numpy(stft.astype(np.float32))[:, None, :])
        self.mel = nn.Parameter(torch.from_numpy(np.concatenate([mel, mel], axis=1))[:, :, None])
        self.cosine = nn.Parameter(mfcc_kernels(parameters.n_mels, n_mfcc)[:, :, None])

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """MFCC of centred, zero-padded frames.

        Parameters
        ----------
        samples : Tensor, shape (clip, sample)
            Mono audio at the parameters' sample rate.

        Returns
        -------
        Tensor, shape (clip, coefficient, frame)
            ``1 + sample // hop_length`` frames.
        """
        if samples.ndim != 2:
            raise FeatureInputError(
                f"Expected audio of shape (clip, sample), got {tuple(samples.shape)}; add or drop an axis."
            )
        padded = functional.pad(samples, (self.n_fft // 2, self.n_fft // 2)).unsqueeze(1)
        power = functional.conv1d(padded, self.stft, stride=self.hop_length).square()
        log_mel = functional.conv1d(power, self.mel).clamp_min(self.floor).log()
        return functional.conv1d(log_mel, self.cosine)
