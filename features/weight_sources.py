"""What a source of weights may be: a seed, a published name or a file; judged before anything is read."""

from pathlib import Path

from features.downloads import PUBLISHED
from features.errors import WeightsError

KERAS = (".h5", ".hdf5")
TORCH = (".pth", ".pt")
OWN = ".safetensors"
SEED = "random:"
# Variants that weights initialise beside the one that they were published for.
_ALSO = {"choi2016": ("thesis",)}


def seed_of(source: str) -> int:
    """Seed of a ``random:<seed>``, or a WeightsError."""
    text = source.removeprefix(SEED)
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise WeightsError(
            f"{source!r} has no seed; expected random:<seed> with a whole number from 0 below 2**63."
        )
    return int(text)


def check_suffix(path: Path) -> None:
    """Raise a WeightsError for a file that is none of weights, by its name."""
    if path.suffix not in (*KERAS, *TORCH, OWN):
        raise WeightsError(
            f"{path.name} has no known suffix; weights are .h5, .hdf5, .pth, .pt or .safetensors files."
        )


def check_published(name: str, variant: str) -> None:
    """Raise a WeightsError for published weights of another network."""
    made_for = PUBLISHED[name].variant
    fitting = (made_for, *_ALSO.get(made_for, ()))
    if variant not in fitting:
        raise WeightsError(
            f"{name!r} holds weights of the variant {' or '.join(fitting)}, not {variant}; ask for that one."
        )
