"""Small data shipped with the package: frozen batch-norm statistics and tag names of published weights.

`benchmarks/calibrate_choi2016.py` makes the .safetensors files; each carries its card.
"""

import hashlib
from functools import lru_cache
from importlib.resources import files

# Raised whenever random:<seed> would give other numbers.
RANDOM_RECIPE = 1


@lru_cache(maxsize=8)
def statistics_digest(variant: str) -> str:
    """Return the SHA-256 of a variant's shipped statistics; empty where it has none."""
    resource = files(__name__).joinpath(f"{variant}.safetensors")
    return hashlib.sha256(resource.read_bytes()).hexdigest() if resource.is_file() else ""
