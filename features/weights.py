"""Weights of the Choi networks: from a seed, a file, or a published name, always with their provenance.

>>> weights = load_weights("random:0", "thesis")
>>> weights.card["variant"], weights.network().variant.embedding_dim
('thesis', 1024)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from features import weight_formats
from features.cnn import CHUNK_FRAMES, N_BANDS, ChoiNetwork, ChoiVariant, calibrate, choi_variant
from features.downloads import PUBLISHED, downloaded, published
from features.errors import WeightsError
from features.spectral import LogMelParameters
from features.statistics import RANDOM_RECIPE
from features.weight_sources import KERAS, OWN, SEED, TORCH, check_suffix, seed_of

_DECIBELS = LogMelParameters(window="hann", htk=False, norm="slaney", log="db")

EXPECTED_INPUT: Mapping[str, LogMelParameters] = {
    "thesis": LogMelParameters(),
    "choi2016": LogMelParameters(
        window="hann", htk=False, norm="slaney", log="db", exponent=2.0, top_db=80.0
    ),
    "jamendo_fcn": _DECIBELS,
}
"""Log-mel that each variant's weights were made for; random weights of any variant expect the thesis's."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of one network and where they come from.

    Parameters
    ----------
    variant : str
        Name of the `ChoiVariant` they fit.
    state : mapping of str to Tensor
        float32 tensors by the names of ``ChoiNetwork.state_dict()``.
    card : dict
        Provenance in JSON types: source, licence, expected input, statistics, remarks.
    sha256 : str
        Of variant, names, shapes and values: the same network has the same one in every file format.
    """

    variant: str
    state: Mapping[str, torch.Tensor]
    card: dict[str, Any]
    sha256: str

    def network(self) -> ChoiNetwork:
        """Plain network with these weights, in evaluation mode."""
        network = weight_formats.blank_network(choi_variant(self.variant))
        network.load_state_dict(dict(self.state), strict=False)
        return network.eval()


def load_weights(
    source: str | Path, variant: str, *, statistics: Literal["frozen", "file"] = "frozen"
) -> Weights:
    """Weights from a seed, a file or a published name.

    Parameters
    ----------
    source : str or Path
        ``random:<seed>``; a name of `features.downloads.PUBLISHED`; or a file: Theano-ordered Keras HDF5
        (.h5, .hdf5), torch state dict (.pth, .pt; never unpickled), or .safetensors of `save_weights`.
    variant : str
        ``thesis``, ``choi2016`` or ``jamendo_fcn``. HDF5 weights of `choi2016` initialise `thesis` too:
        convolutions and batch norms of the five layers are taken, its own input norm is calibrated.
    statistics : {"frozen", "file"}
        Published HDF5 weights have no batch-norm statistics of their own (they used each batch's):
        "frozen" puts in those shipped in `features/statistics`, "file" leaves what the file has, for
        ``batch_statistics=True`` or a calibration.

    Raises
    ------
    WeightsError
        If a file is missing, damaged or of another network, or cannot be downloaded.
    FeatureInputError
        If there is no such variant.
    """
    chosen = choi_variant(variant)
    text = str(source)
    if text.startswith(SEED):
        return _random(text, chosen)
    if text in PUBLISHED and not Path(text).exists():
        entry = PUBLISHED[text]
        path = downloaded(entry)
        card = {"source": text, "url": entry.url, "licence": entry.licence}
    else:
        path = Path(text)
        if not path.suffix and not path.exists():
            published(text)  # raises, with the nearest name
        card = {"source": path.name}
    return _from_file(path, chosen, card, statistics)


def save_weights(weights: Weights, path: str | Path) -> None:
    """Write weights as .safetensors, with their card and content hash in its metadata."""
    path = Path(path)
    if path.suffix != OWN:
        raise WeightsError(f"Weights are saved as .safetensors, got {path.name}; change the suffix.")
    weight_formats.save_safetensors(path, dict(weights.state), weights.card, weights.sha256)


def network_weights(network: ChoiNetwork, card: Mapping[str, Any]) -> Weights:
    """Weights of a network that was trained or calibrated here, under a card that says how."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return _weights(network.variant, state, dict(card), str(card.get("source", "this network")))


def tag_names(variant: str) -> tuple[str, ...]:
    """Tags that the outputs of a variant's published head stand for, in order; none without a head."""
    tags = json.loads(resources.files("features.statistics").joinpath("tags.json").read_text("utf-8"))
    return tuple(tags.get(choi_variant(variant).name, ()))


def _weights(variant: ChoiVariant, state: weight_formats.State, card: dict[str, Any], source: str) -> Weights:
    complete = weight_formats.checked(state, variant, source)
    card = {"variant": variant.name, "input": asdict(EXPECTED_INPUT[variant.name])} | card
    return Weights(variant.name, complete, card, _content_sha256(variant, complete))


def _content_sha256(variant: ChoiVariant, state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(f"choi:{variant.name}".encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"|{name}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _from_file(path: Path, variant: ChoiVariant, card: dict[str, Any], statistics: str) -> Weights:
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}; mend the path, or name random:<seed>.")
    check_suffix(path)
    try:
        card["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"Cannot read {path.name} ({error.strerror}); mend its permissions.") from error
    if path.suffix in KERAS:
        return _from_keras(path, variant, card, statistics)
    if path.suffix in TORCH:
        card["statistics"] = "as in the file"
        return _weights(variant, weight_formats.torch_state(path, variant), card, path.name)
    return _from_safetensors(path, variant)


def _from_keras(path: Path, variant: ChoiVariant, card: dict[str, Any], statistics: str) -> Weights:
    state, has_statistics = weight_formats.keras_state(path, variant)
    card["trained_as"] = "choi2016"
    card["conversion"] = "Keras 1 HDF5, Theano order: kernels flipped on both axes, running_std is a variance"
    if variant.name != "choi2016":
        for name, shape in weight_formats.expected_shapes(variant).items():
            if name.startswith("input_norm."):
                state[name] = torch.full(shape, float(name.endswith(("weight", "running_var"))))
    if statistics == "file":
        card["statistics"] = "as in the file"
        return _weights(variant, state, card, path.name)
    if has_statistics and variant.name == "choi2016":
        card["statistics"] = "as in the file"
        return _weights(variant, state, card, path.name)
    frozen, frozen_card = _frozen_statistics(variant)
    if frozen_card.get("weights_file_sha256") != card["file_sha256"]:
        raise WeightsError(
            f"{path.name} has no batch-norm statistics for {variant.name}, and those shipped belong to other "
            'weights; load it with statistics="file", calibrate the network and save it.'
        )
    card["statistics"] = frozen_card
    return _weights(variant, state | frozen, card, path.name)


def _frozen_statistics(variant: ChoiVariant) -> tuple[weight_formats.State, dict[str, Any]]:
    with resources.as_file(resources.files("features.statistics") / f"{variant.name}.safetensors") as path:
        state, metadata = weight_formats.safetensors_state(path)
    return state, json.loads(metadata["card"])


def _from_safetensors(path: Path, variant: ChoiVariant) -> Weights:
    state, metadata = weight_formats.safetensors_state(path)
    try:
        card = json.loads(metadata["card"])
        stated, saved_variant = metadata["sha256"], card["variant"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path.name} carries no card of mirstore; write weights with features.weights.save_weights."
        ) from error
    if saved_variant != variant.name:
        raise WeightsError(
            f"{path.name} holds weights of the variant {saved_variant}, not {variant.name}; ask for that one."
        )
    weights = _weights(variant, state, card, path.name)
    if weights.sha256 != stated:
        raise WeightsError(
            f"{path.name} is damaged: its content hashes to {weights.sha256[:12]}, its card says {stated[:12]}; "
            "save or fetch it anew."
        )
    return weights


def _random(source: str, variant: ChoiVariant) -> Weights:
    """He-initialised network, its batch norms calibrated on synthetic log-mels.

    Uniform draws are exact everywhere, and statistics are snapped to a grid: so another processor or number
    of threads, which sums in another order, still gives the same weights and the same hash.
    """
    generator = torch.Generator().manual_seed(seed_of(source))
    network = weight_formats.blank_network(variant)
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            gain = 1.0 if name.startswith("head") else 2.0
            bound = (3.0 * gain / parameter[0].numel()) ** 0.5
            drawn = torch.rand(parameter.shape, generator=generator) * (2.0 * bound) - bound
        else:
            drawn = torch.full(parameter.shape, float(name.endswith("weight")))
        parameter.data.copy_(drawn)
    # log-mels in [-23, 5] come out in about [-2.3, 2.3]
    network.input_norm.get_buffer("running_mean").fill_(-9.0)
    network.input_norm.get_buffer("running_var").fill_(36.0)
    calibrate(network, _synthetic_log_mels(variant), snapped=_snapped)
    card = {
        "source": source,
        "licence": "none needed",
        "recipe": RANDOM_RECIPE,
        "input": asdict(EXPECTED_INPUT["thesis"]),
        "statistics": "calibrated on synthetic natural-log log-mels",
    }
    return _weights(variant, dict(network.state_dict()), card, source)


def _snapped(mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Deviation to the nearest quarter octave, mean to the nearest eighth of a deviation."""
    deviation = torch.exp2(torch.log2(variance.clamp_min(1e-12).sqrt()).mul(4.0).round() / 4.0)
    return (mean / deviation).mul(8.0).round() / 8.0 * deviation, deviation.square()


def _synthetic_log_mels(variant: ChoiVariant, n_chunks: int = 2) -> NDArray[np.float64]:
    """Log-mels in about [-23, 5] with structure on every scale that the five layers see."""
    generator = np.random.Generator(np.random.PCG64(20160807))
    n_frames = max(variant.frames_range[0], CHUNK_FRAMES if variant.padding == "same" else 0)
    log_mels = np.full((n_chunks, N_BANDS, n_frames), -9.0)
    for bands, frames in ((48, 384), (24, 128), (12, 48), (6, 16), (3, 6), (1, 1)):
        coarse = generator.uniform(-4.5, 4.5, (n_chunks, N_BANDS // bands, -(-n_frames // frames)))
        log_mels += coarse.repeat(bands, axis=1).repeat(frames, axis=2)[:, :, :n_frames]
    return log_mels
