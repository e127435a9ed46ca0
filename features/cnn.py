"""The Choi family of convolutional networks: log-mel chunks in, embeddings out.

One parameterised network for three variants. `ChoiNetwork` is the plain form that is trained, calibrated
and tested; `features.inference.Embedder` is the fast form of the same function. Axes are
(chunk, band, frame).

References
----------
.. [1] Choi, Fazekas, Sandler: Automatic tagging using deep convolutional neural networks, ISMIR 2016.
.. [2] Sankaran: the thesis, algorithm 20 (its batch norm must read sqrt(var + eps), not minus).
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from features.errors import FeatureInputError

N_BANDS = 96
CHUNK_FRAMES = 1366

Pool = tuple[int, int] | None


@dataclass(frozen=True)
class ChoiVariant:
    """One member of the family; every layer is convolution 3 x 3, batch norm, ELU, max-pool.

    Parameters
    ----------
    name : str
        How catalogs and weights call it.
    channels : tuple of int
        Output channels of the five convolutions.
    pools : tuple of (int, int) or None
        (bands, frames) of each max-pool; None for no pooling.
    padding : {"valid", "same"}
        Of the convolutions; "same" pads the normalised input with zeros.
    input_norm : {"band", "frame", "all"}
        What the input's batch normalisation has its own mean and variance for: each of 96 mel bands, each of
        1366 frames, or the whole input.
    embedding_dim : int
        Length of the embedding: channels x bands x frames left after the last layer.
    n_outputs : int or None
        Tags of the dense head; None for a variant without one.
    """

    name: str
    channels: tuple[int, ...]
    pools: tuple[Pool, ...]
    padding: Literal["valid", "same"]
    input_norm: Literal["band", "frame", "all"]
    embedding_dim: int
    n_outputs: int | None = None

    @property
    def n_norms(self) -> int:
        """Number of means of the input's batch normalisation."""
        return {"band": N_BANDS, "frame": CHUNK_FRAMES, "all": 1}[self.input_norm]

    @property
    def frames_range(self) -> tuple[int, int]:
        """Smallest and largest number of frames that give `embedding_dim` numbers."""
        if self.input_norm == "frame":
            return CHUNK_FRAMES, CHUNK_FRAMES
        border = 2 if self.padding == "valid" else 0
        bands = N_BANDS
        for pool in self.pools:
            bands = (bands - border) // (pool[0] if pool else 1)
        low = high = self.embedding_dim // (self.channels[-1] * bands)
        for pool in reversed(self.pools):
            n = pool[1] if pool else 1
            low, high = low * n + border, high * n + n - 1 + border
        return low, high

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise FeatureInputError unless `shape` is (..., 96, frames) with a number of frames that fits."""
        low, high = self.frames_range
        if len(shape) < 2 or shape[-2] != N_BANDS or not low <= shape[-1] <= high:
            frames = f"{low}" if low == high else f"{low} to {high}"
            raise FeatureInputError(
                f"{self.name} reads log-mels of shape (..., {N_BANDS}, {frames}), got {tuple(shape)}; "
                f"cut or zero-pad them to chunks of {CHUNK_FRAMES} frames."
            )


_SAME_POOLS: tuple[Pool, ...] = ((2, 4), (2, 4), (2, 4), (3, 5), (4, 4))

VARIANTS: dict[str, ChoiVariant] = {
    variant.name: variant
    for variant in (
        ChoiVariant("thesis", (32, 128, 128, 192, 256), ((2, 4),) * 4 + (None,), "valid", "band", 1024),
        ChoiVariant("choi2016", (32, 128, 128, 192, 256), _SAME_POOLS, "same", "frame", 256, 50),
        ChoiVariant("jamendo_fcn", (64, 128, 128, 128, 64), _SAME_POOLS, "same", "all", 64, 56),
    )
}


def choi_variant(name: str) -> ChoiVariant:
    """Variant of that name.

    Raises
    ------
    FeatureInputError
        If there is none; the message names the nearest.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(VARIANTS)}."
    raise FeatureInputError(f"There is no CNN variant {name!r}; {hint}")


class ChoiNetwork(nn.Module):
    """Plain network of one variant; `forward` gives embeddings, `tag_probabilities` what the head says.

    Parameters
    ----------
    variant : ChoiVariant
        One of `VARIANTS`.
    """

    def __init__(self, variant: ChoiVariant) -> None:
        super().__init__()
        self.variant = variant
        inputs = (1, *variant.channels[:-1])
        padding = 1 if variant.padding == "same" else 0
        self.input_norm = nn.BatchNorm1d(variant.n_norms)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, padding=padding)
            for n_in, n_out in zip(inputs, variant.channels, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in variant.channels)
        self.head = nn.Linear(variant.embedding_dim, variant.n_outputs) if variant.n_outputs else None

    def forward(self, log_mels: torch.Tensor, *, batch_statistics: bool = False) -> torch.Tensor:
        """Embeddings of a batch of chunks.

        Parameters
        ----------
        log_mels : Tensor, shape (chunk, 96, frame)
            Log-mels as the weights expect them (natural logarithm or dB, see their card).
        batch_statistics : bool
            Normalise the five layers with the mean and variance of this very batch, as the publication of
            `choi2016` did. An embedding then depends on its batch-mates; no store wants that.

        Returns
        -------
        Tensor, shape (chunk, embedding_dim)
        """
        x = self.normalised(log_mels)
        for layer in range(len(self.convolutions)):
            x = self._activated(layer, self.convolutions[layer](x), batch_statistics)
        embeddings: torch.Tensor = x.flatten(1)
        return embeddings

    def tag_probabilities(self, log_mels: torch.Tensor, *, batch_statistics: bool = False) -> torch.Tensor:
        """Probability of each tag, shape (chunk, n_outputs), for the variants that have a head."""
        if self.head is None:
            raise FeatureInputError(
                f"The variant {self.variant.name} has no tag head; train a classifier on its embeddings."
            )
        logits = self.head(self(log_mels, batch_statistics=batch_statistics))
        return torch.sigmoid(cast(torch.Tensor, logits))

    def normalised(self, log_mels: torch.Tensor) -> torch.Tensor:
        """Input after its own batch norm, shape (chunk, 1, 96, frame)."""
        if log_mels.ndim != 3:
            raise FeatureInputError(
                f"Expected log-mels of shape (chunk, band, frame), got {tuple(log_mels.shape)}; "
                "add or drop an axis."
            )
        self.variant.check_input(tuple(log_mels.shape))
        if self.variant.input_norm == "frame":
            x = self.input_norm(log_mels.transpose(1, 2)).transpose(1, 2)
        elif self.variant.input_norm == "band":
            x = self.input_norm(log_mels)
        else:
            x = self.input_norm(log_mels.flatten(1).unsqueeze(1)).view_as(log_mels)
        normalised: torch.Tensor = x.unsqueeze(1)
        return normalised

    def _activated(self, layer: int, x: torch.Tensor, batch_statistics: bool = False) -> torch.Tensor:
        norm, pool = cast(nn.BatchNorm2d, self.norms[layer]), self.variant.pools[layer]
        if batch_statistics:
            x = functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        else:
            x = norm(x)
        # ELU is monotone: pooling first gives the same numbers from an eighth of the exponentials
        return functional.elu(x if pool is None else functional.max_pool2d(x, pool))


@torch.no_grad()
def calibrate(
    network: ChoiNetwork,
    log_mels: NDArray[np.floating] | torch.Tensor,
    *,
    with_input_norm: bool = False,
    snapped: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> None:
    """Freeze batch-norm statistics, in place: those that all chunks given would have as one batch.

    Layer after layer, one chunk at a time. The network then gives for these chunks what
    `batch_statistics=True` gives for them as one batch, and for any other chunk a figure of its own.

    Parameters
    ----------
    network : ChoiNetwork
        Its means and variances are replaced; it is left in evaluation mode.
    log_mels : array or Tensor, shape (chunk, 96, frame)
        The calibration set; about 2.5 MB a chunk are held besides.
    with_input_norm : bool
        Replace the statistics of the input's batch norm too.
    snapped : callable, optional
        Rounds the float64 means and variances of a layer before they are frozen.
    """
    network.eval()
    dtype = network.input_norm.weight.dtype
    log_mels = torch.as_tensor(log_mels).to(dtype)
    if log_mels.ndim != 3 or len(log_mels) == 0:
        raise FeatureInputError(
            f"Calibration needs chunks of shape (chunk, band, frame), got {tuple(log_mels.shape)}; "
            "hand over at least one."
        )
    if with_input_norm:
        axes = {"band": (0, 2), "frame": (0, 1), "all": (0, 1, 2)}[network.variant.input_norm]
        mean, variance = log_mels.double().mean(axes), log_mels.double().var(axes, correction=0)
        _freeze(network.input_norm, mean, variance)
    inputs = [
        network.normalised(chunk[None]).contiguous(memory_format=torch.channels_last) for chunk in log_mels
    ]
    for layer, (convolution, norm) in enumerate(zip(network.convolutions, network.norms, strict=True)):
        moments = [_moments(convolution(x)) for x in inputs]
        mean = torch.stack([m for m, _ in moments]).mean(0)
        second = torch.stack([variance + m.square() for m, variance in moments]).mean(0)
        statistics = mean, (second - mean.square()).clamp_min(0.0)
        _freeze(norm, *(snapped(*statistics) if snapped else statistics))
        inputs = [network._activated(layer, convolution(x)) for x in inputs]


def _moments(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel in float64, without a second copy of the activations."""
    values = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
    mean = values.mean(0)
    return mean.double(), values.sub(mean).square_().mean(0).double()


def _freeze(norm: nn.Module, mean: torch.Tensor, variance: torch.Tensor) -> None:
    for buffer, values in ((norm.running_mean, mean), (norm.running_var, variance)):
        if not isinstance(buffer, torch.Tensor):
            raise TypeError(f"{type(norm).__name__} keeps no statistics.")
        buffer.copy_(values.reshape(buffer.shape))
