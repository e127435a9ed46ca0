"""Fast CNN inference: one log-mel chunk in, one embedding out, the same whatever else is asked for.

Measured in ms a chunk, one thread of an AMD EPYC with AVX512-BF16, no AMX (`thesis` / `choi2016` /
`jamendo_fcn`): plain 70 / 74 / 155, channels-last 53 / 55 / 97, folded and channels-last 20 / 22 / 49,
here float32 20 / 22 / 34, here bfloat16 12 / 13 / 20. torch.jit.freeze and prepacked oneDNN weights gain
nothing over folding; torch.compile gains 1 to 2 ms and costs 2 to 20 s at start-up. Relative error (L2) to
the plain network: float32 2e-6, bfloat16 0.4 to 0.6 % on published weights, 1 % on random ones.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from features.cnn import ChoiVariant, choi_variant
from features.errors import FeatureInputError
from features.weights import Weights

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SLAB_ROWS = 12
# oneDNN's float32 convolution from 1 to 64 channels takes 5 or 18 ms, by chance; two of 32 always take 5
_GROUP_CHANNELS = 32


class Embedder:
    """Embeddings of log-mel chunks by a network folded for inference.

    Batch norms are folded into the convolutions, pooling goes before ELU (monotone), and tensors are
    channels-last. The first layer, whose activation would be 17 MB, runs in slabs of bands.

    Parameters
    ----------
    weights : Weights
        Of any variant.
    device : {"auto", "cpu", "cuda"}
        "auto" takes CUDA where there is a device.
    precision : {"auto", "float32", "bfloat16"}
        "bfloat16" multiplies layers 2 to 5 in it; the first stays in float32. "auto" is bfloat16 on
        processors that multiply it natively (AMX or AVX512-BF16), float32 elsewhere and on CUDA, where a
        single chunk is bound by launches. The attribute `precision` says which it is; pickling keeps it.

    Raises
    ------
    FeatureInputError
        For a device or precision that does not exist here.
    """

    def __init__(self, weights: Weights, *, device: Device = "auto", precision: Precision = "auto") -> None:
        self.weights = weights
        self.variant: ChoiVariant = choi_variant(weights.variant)
        self._requested_device: Device = device
        self.device = _resolved_device(device)
        self.precision = _resolved_precision(precision, self.device)
        self._dtype = _DTYPES[self.precision]
        scale, shift = _affine(weights, "input_norm")
        axis = {"band": (-1, 1), "frame": (1, -1), "all": (1, 1)}[self.variant.input_norm]
        self._scale = scale.reshape(axis).to(self.device, torch.float32)
        self._shift = shift.reshape(axis).to(self.device, torch.float32)
        self._layers = [self._folded(layer) for layer in range(len(self.variant.channels))]

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.variant.embedding_dim

    def embedding(self, log_mel: NDArray[np.floating]) -> NDArray[np.float32]:
        """Embedding of a chunk, or of each of several.

        Parameters
        ----------
        log_mel : array, shape (96, frame) or (chunk, 96, frame)
            Any float type. Chunks are worked off one at a time, so that the result does not depend on the
            others.

        Returns
        -------
        array of float32, shape (dim,) or (chunk, dim)

        Raises
        ------
        FeatureInputError
            For another shape, or for values that are not finite.
        """
        log_mel = np.asarray(log_mel)
        if log_mel.ndim not in (2, 3) or not np.issubdtype(log_mel.dtype, np.floating):
            raise FeatureInputError(
                f"Expected floats of shape (band, frame) or (chunk, band, frame), got {log_mel.dtype} of shape "
                f"{log_mel.shape}; mend the call."
            )
        self.variant.check_input(log_mel.shape)
        chunks = log_mel if log_mel.ndim == 3 else log_mel[None]
        embeddings = np.empty((len(chunks), self.dim), dtype=np.float32)
        for row, chunk in zip(embeddings, chunks, strict=True):
            row[:] = self._one(np.array(chunk, dtype=np.float32, order="C"))
        return embeddings if log_mel.ndim == 3 else embeddings[0]

    def _one(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(chunk).all():
            raise FeatureInputError(
                "The log-mel has values that are not finite; set its floor above 0 and decode it anew."
            )
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with torch.inference_mode(), exact:
            x = torch.addcmul(self._shift, torch.from_numpy(chunk).to(self.device), self._scale)
            x = self._first_layer(x[None, None]).to(self._dtype)
            padding = 1 if self.variant.padding == "same" else 0
            for (weight, bias), pool in zip(self._layers[1:], self.variant.pools[1:], strict=True):
                x = functional.conv2d(x, weight, bias, padding=padding)
                x = functional.elu_(x if pool is None else functional.max_pool2d(x, pool))
            embedding: NDArray[np.float32] = x.flatten(1)[0].float().cpu().numpy()
        return embedding

    def _first_layer(self, x: torch.Tensor) -> torch.Tensor:
        """First layer in slabs of pooled rows: memory stays bounded and the activation in the cache."""
        if self.variant.padding == "same":
            x = functional.pad(x, (1, 1, 1, 1))
        (weight, bias), pool = self._layers[0], self.variant.pools[0] or (1, 1)
        n_groups = -(-len(bias) // _GROUP_CHANNELS)
        kernels = list(zip(weight.chunk(n_groups), bias.chunk(n_groups), strict=True))
        n_rows = (x.shape[2] - 2) // pool[0]
        slabs = []
        for start in range(0, n_rows, _SLAB_ROWS):
            slab = x[:, :, start * pool[0] : min(start + _SLAB_ROWS, n_rows) * pool[0] + 2]
            pooled = [functional.max_pool2d(functional.conv2d(slab, *kernel), pool) for kernel in kernels]
            slabs.append(functional.elu_(torch.cat(pooled, dim=1)))
        return torch.cat(slabs, dim=2)

    def _folded(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = _affine(self.weights, f"norms.{layer}")
        state = self.weights.state
        # the first layer stays in float32: bfloat16 there would make six times the error of all other layers
        dtype = self._dtype if layer else torch.float32
        weight = state[f"convolutions.{layer}.weight"].double() * scale[:, None, None, None]
        bias = state[f"convolutions.{layer}.bias"].double() * scale + shift
        return (
            weight.to(self.device, dtype).to(memory_format=torch.channels_last),
            bias.to(self.device, dtype),
        )

    def __getstate__(self) -> dict[str, object]:
        return {"weights": self.weights, "device": self._requested_device, "precision": self.precision}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _affine(weights: Weights, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift, in float64, that a batch norm with frozen statistics is."""
    gamma, beta, mean, variance = (
        weights.state[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / torch.sqrt(variance + 1e-5)
    return scale, beta - mean * scale


def _resolved_device(device: Device) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise FeatureInputError(f"device must be auto, cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise FeatureInputError(
            "device is cuda, but torch sees no CUDA device here; use device: auto or cpu."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _resolved_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    if precision not in ("auto", *_DTYPES):
        raise FeatureInputError(f"precision must be auto, float32 or bfloat16, got {precision!r}.")
    if precision != "auto":
        return precision
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if device.type == "cpu" and native else "float32"
