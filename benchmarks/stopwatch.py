"""A stopwatch of two clocks: wall time, and CPU of all threads."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

Taken = tuple[float, float]
Figures = dict[str, Taken]


def now() -> NDArray[np.float64]:
    """Return two clocks: wall time and CPU of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


class Stopwatch:
    """Wall time and CPU by name."""

    def __init__(self) -> None:
        self.taken: Figures = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = now()
        yield
        wall_s, cpu_s = now() - begun
        self.taken[name] = float(wall_s), float(cpu_s)
