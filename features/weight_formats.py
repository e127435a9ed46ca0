"""Published weight files as state dicts of `ChoiNetwork`: Keras HDF5, torch state dicts, safetensors.

Nothing here unpickles: HDF5 datasets are read as arrays, torch files with ``weights_only=True``.
"""

import json
import pickle
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from features.cnn import ChoiNetwork, ChoiVariant
from features.errors import WeightsError

State = dict[str, torch.Tensor]

_KERAS_VARIANTS = ("choi2016", "thesis")


def blank_network(variant: ChoiVariant) -> ChoiNetwork:
    """Network to be filled; the caller's random state stays as it was."""
    # the meta device would draw no numbers, but costs 0.4 s: it imports sympy
    with torch.random.fork_rng(devices=[]):
        return ChoiNetwork(variant)


@lru_cache(maxsize=16)
def expected_shapes(variant: ChoiVariant) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the float tensors of a variant's state dict."""
    state = blank_network(variant).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}


def checked(state: State, variant: ChoiVariant, source: str) -> State:
    """The float32 tensors that the variant needs, or a WeightsError that names the first misfit."""
    complete: State = {}
    for name, shape in expected_shapes(variant).items():
        if name not in state:
            raise WeightsError(
                f"{source} lacks {name} of the variant {variant.name}; name a file of that variant."
            )
        tensor = state[name]
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{source} has {name} of shape {tuple(tensor.shape)}, the variant {variant.name} needs {shape}; "
                "name a file of that variant."
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise WeightsError(f"{source} has values in {name} that are no finite floats; fetch it anew.")
        complete[name] = tensor.detach().to(torch.float32).contiguous()
    return complete


def keras_state(path: Path, variant: ChoiVariant) -> tuple[State, bool]:
    """State dict from a Theano-ordered Keras 1 HDF5 file, as published for `choi2016`.

    Theano's convolution flips its kernels, torch's does not: both spatial axes are reversed.
    `running_std` holds a variance (Keras 1 kept its old name). The input norm runs over time, so the variant
    `thesis`, whose own runs over bands, does not take it (nor the head).

    Returns
    -------
    state : dict
        What the file has of the variant's tensors.
    has_statistics : bool
        Whether the five later batch norms carry statistics; the published file has means of 0 and variances
        of 1 there, because Keras's mode 2 used each batch's own.
    """
    if variant.name not in _KERAS_VARIANTS:
        raise WeightsError(
            f"{path.name} is Keras HDF5, which is read for {' or '.join(_KERAS_VARIANTS)}, not {variant.name}; "
            "name a state dict (.pth or .safetensors)."
        )
    state: State = {}
    has_statistics = False
    try:
        with h5py.File(path, "r") as file:
            for layer in range(5):
                keras = layer + 1
                kernel = _array(file, f"conv{keras}/conv{keras}_W", path)
                if kernel.ndim != 4:
                    raise WeightsError(
                        f"{path.name} has conv{keras}_W with {kernel.ndim} axes, expected (out, in, 3, 3); "
                        "name a file in Theano's order."
                    )
                state[f"convolutions.{layer}.weight"] = torch.from_numpy(kernel[:, :, ::-1, ::-1].copy())
                state[f"convolutions.{layer}.bias"] = torch.from_numpy(
                    _array(file, f"conv{keras}/conv{keras}_b", path)
                )
                norm = _keras_norm(file, f"bn{keras}", path)
                state |= {f"norms.{layer}.{name}": tensor for name, tensor in norm.items()}
                has_statistics |= bool((norm["running_mean"] != 0).any() or (norm["running_var"] != 1).any())
            if variant.name == "choi2016":
                norm = _keras_norm(file, "bn_0_freq", path)
                state |= {f"input_norm.{name}": tensor for name, tensor in norm.items()}
                state["head.weight"] = torch.from_numpy(_array(file, "output/output_W", path).T.copy())
                state["head.bias"] = torch.from_numpy(_array(file, "output/output_b", path))
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise _damaged(path, "Keras HDF5", error) from error
    return state, has_statistics


def _keras_norm(file: h5py.File, layer: str, path: Path) -> State:
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "running_mean",
        "running_var": "running_std",
    }
    return {
        ours: torch.from_numpy(_array(file, f"{layer}/{layer}_{theirs}", path))
        for ours, theirs in names.items()
    }


def _array(file: h5py.File, name: str, path: Path) -> NDArray[np.float32]:
    try:
        dataset = file[name]
    except KeyError as error:
        raise WeightsError(
            f"{path.name} lacks {name}; expected the Keras file published for choi2016, fetch that."
        ) from error
    return np.asarray(dataset[()], dtype=np.float32)


def torch_state(path: Path, variant: ChoiVariant) -> State:
    """State dict from a torch file, ours or with the names of the MTG-Jamendo baseline."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise _damaged(path, "a torch state dict", error) from error
    if not isinstance(loaded, dict) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise WeightsError(
            f"{path.name} holds no state dict (a dict of tensors); save network.state_dict() alone."
        )
    if "bn_init.weight" in loaded:
        return {_baseline_name(str(name)): tensor for name, tensor in loaded.items()}
    return {str(name): tensor for name, tensor in loaded.items()}


def _baseline_name(name: str) -> str:
    module, _, field = name.partition(".")
    kind, _, number = module.partition("_")
    if module == "bn_init":
        return f"input_norm.{field}"
    if module == "dense":
        return f"head.{field}"
    if number.isdigit() and kind in {"conv", "bn"}:
        return f"{'convolutions' if kind == 'conv' else 'norms'}.{int(number) - 1}.{field}"
    return name


def safetensors_state(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and text metadata of a .safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, "safetensors", error) from error


def save_safetensors(path: Path, state: State, card: dict[str, object], sha256: str) -> None:
    """Write tensors with their card, atomically."""
    partial = path.with_name(f".{path.name}.partial")
    metadata = {"card": json.dumps(card, sort_keys=True), "sha256": sha256}
    try:
        partial.write_bytes(save(dict(sorted(state.items())), metadata=metadata))
        partial.replace(path)
    except OSError as error:
        raise WeightsError(
            f"Cannot write {path.name} ({error.strerror}); choose a folder that can be written."
        ) from error


def _damaged(path: Path, expected: str, error: Exception) -> WeightsError:
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return WeightsError(f"{path.name} is damaged or not {expected} ({detail}); fetch or save it anew.")
