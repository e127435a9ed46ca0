"""The way from one feature's rows to the next, chunk by chunk.

`FeatureChain` is pushed one chunk at a time and hands every feature's stored row to a sink. A
feature is computed from its upstream as stored, after rounding, with just the context its
definition needs; nothing depends on the other chunks of a batch. So rows made while a file is
decoded and rows made a year later from the cache are the same bits.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.definitions import (
    CnnDefinition,
    Feature,
    LogMelDefinition,
    MfccDefinition,
    log_mel_parameters,
)

Row = NDArray[Any]
Sink = Callable[[str, Row], None]


@dataclass(frozen=True, slots=True)
class _Computation:
    """How a row is computed, and how many upstream samples it needs on either side."""

    compute: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    left: int = 0
    right: int = 0
    arithmetic: tuple[tuple[str, str], ...] = ()


def arithmetic(feature: Feature) -> dict[str, str]:
    """Return what ``auto`` came to here: a network's precision and device; empty for other kinds."""
    return dict(_computation(feature).arithmetic) if feature.upstream else {}


@lru_cache(maxsize=32)
def _computation(feature: Feature) -> _Computation:
    """Return how a feature is computed; networks are loaded once a process."""
    definition = feature.definition
    match definition:
        case LogMelDefinition():
            from features.spectral import log_mel_of_context

            parameters = log_mel_parameters(definition, feature.grid)
            return _Computation(
                lambda samples: log_mel_of_context(samples, parameters),
                parameters.left_context,
                parameters.right_context,
            )
        case MfccDefinition():
            from features.spectral import mfcc

            n_mfcc = definition.n_mfcc
            return _Computation(lambda log_mel: mfcc(log_mel, n_mfcc=n_mfcc))
        case CnnDefinition():
            from features.inference import Embedder  # imports torch: only where it is needed
            from features.weights import load_weights

            embedder = Embedder(
                load_weights(definition.weights, definition.variant),
                device=definition.device,
                precision=definition.precision,
            )
            settings = (("precision", embedder.precision), ("device", str(embedder.device)))
            return _Computation(embedder.embedding, arithmetic=settings)
        case _:
            raise TypeError(f"{feature.kind} is not computed from another feature")


class _Node:
    """One feature of the chain and what of a track it has seen."""

    def __init__(
        self, feature: Feature, computation: _Computation, sink: Sink, seconds: dict[str, float]
    ) -> None:
        self.feature = feature
        self.children: list[_Node] = []
        self._computation = computation
        self._sink = sink
        self._seconds = seconds
        self._left = computation.left
        self._right = computation.right
        self._window: NDArray[np.float32] | None = None
        self._pending = False

    def push(self, values: NDArray[np.float32]) -> None:
        """Take the next upstream row."""
        if not self._left and not self._right:
            self._emit(values)
            return
        size = values.shape[-1]
        if self._window is None:
            self._window = np.zeros(self._left + size + self._right, dtype=np.float32)
        window = self._window
        if self._right:
            # A row with context on its right is complete only when the next one has come.
            if self._pending:
                window[self._left + size :] = values[: self._right]
                self._emit(window)
            window[: self._left] = window[size : size + self._left]
            window[self._left : self._left + size] = values
            self._pending = True
        else:
            window[: self._left] = window[size:]
            window[self._left :] = values
            self._emit(window)

    def _emit(self, window: NDArray[np.float32]) -> None:
        start = time.perf_counter()
        stored = self.feature.stored(self._computation.compute(window))
        self._seconds[self.feature.kind] += time.perf_counter() - start
        self._sink(self.feature.name, stored)
        if self.children:
            values = self.feature.values(stored)
            for child in self.children:
                child.push(values)

    def finish(self) -> None:
        """End the track: what waits for context gets silence."""
        if self._pending and self._window is not None:
            self._window[-self._right :] = 0
            self._emit(self._window)
        for child in self.children:
            child.finish()
        self.reset()

    def reset(self) -> None:
        """Forget the track."""
        self._pending = False
        if self._window is not None:
            self._window.fill(0)
        for child in self.children:
            child.reset()


@dataclass(slots=True)
class FeatureChain:
    """Features computed from rows that are pushed in.

    Parameters
    ----------
    features
        To be computed, upstream first. Those whose upstream is not among them are fed by `push`.
    sink
        Called with a feature's name and each of its stored rows, in order.
    """

    features: Sequence[Feature]
    sink: Sink
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _fed: dict[str, list[_Node]] = field(default_factory=dict, init=False)
    _audio: Feature | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        nodes: dict[str, _Node] = {}
        for feature in self.features:
            if feature.upstream is None:
                self._fed.setdefault(feature.name, [])
                continue
            node = _Node(feature, _computation(feature), self.sink, self.seconds)
            nodes[feature.name] = node
            if feature.upstream in nodes:
                nodes[feature.upstream].children.append(node)
            else:
                self._fed.setdefault(feature.upstream, []).append(node)
        self._audio = next((feature for feature in self.features if feature.upstream is None), None)

    @property
    def sources(self) -> list[str]:
        """Names of the features whose rows must be pushed."""
        return list(self._fed)

    def push_audio(self, samples: NDArray[np.float32]) -> None:
        """Take one decoded chunk: store it, and feed what is computed from it as stored."""
        audio = self._audio
        if audio is None:
            raise ValueError("this chain has no audio feature; push stored rows instead.")
        start = time.perf_counter()
        stored = audio.stored(samples)
        values = audio.values(stored)
        self.seconds["audio"] += time.perf_counter() - start
        self.sink(audio.name, stored)
        self.push(audio.name, values)

    def push(self, source: str, values: NDArray[np.float32]) -> None:
        """Take one row of an upstream feature, as float32 values."""
        for node in self._fed[source]:
            node.push(values)

    def finish_track(self) -> None:
        """End the track, so that the next one starts without context."""
        for nodes in self._fed.values():
            for node in nodes:
                node.finish()

    def reset(self) -> None:
        """Forget a track that failed halfway."""
        for nodes in self._fed.values():
            for node in nodes:
                node.reset()
