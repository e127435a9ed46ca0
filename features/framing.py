"""The grid that every array of a store shares: samples <-> frames <-> chunks.

A frame is one STFT column. A chunk is a fixed number of frames and the row of every array, so chunk
``i`` holds samples ``[i * chunk_samples, (i + 1) * chunk_samples)`` and frames
``[i * frames_per_chunk, (i + 1) * frames_per_chunk)``; frame ``t`` is centred on sample
``t * hop_length``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.errors import FeatureInputError

Seconds = float


@dataclass(frozen=True, slots=True)
class Grid:
    """Sample rate, hop and chunk length of one store.

    Parameters
    ----------
    sample_rate
        Samples a second, Hz.
    hop_length
        Samples from one frame to the next.
    frames_per_chunk
        Frames in a chunk; 1366 frames of 256 samples at 12 kHz are 29.14 s.
    min_tail_s
        A last piece shorter than this many seconds is dropped, unless it is the only one.
    """

    sample_rate: int = 12_000
    hop_length: int = 256
    frames_per_chunk: int = 1366
    min_tail_s: Seconds = 3.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "hop_length", "frames_per_chunk"):
            if getattr(self, name) < 1:
                raise FeatureInputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.min_tail_s * self.sample_rate <= self.chunk_samples:
            raise FeatureInputError(
                f"min_tail_s must be in [0, {self.chunk_s:.2f}] (one chunk), got {self.min_tail_s}."
            )

    @property
    def chunk_samples(self) -> int:
        """Samples in a chunk."""
        return self.hop_length * self.frames_per_chunk

    @property
    def chunk_s(self) -> Seconds:
        """Length of a chunk in seconds."""
        return self.chunk_samples / self.sample_rate

    def n_chunks(self, n_samples: int) -> int:
        """Return how many chunks a track of `n_samples` samples has.

        Examples
        --------
        >>> grid = Grid()
        >>> [grid.n_chunks(n) for n in (0, 1, 349_696, 349_696 + 35_999, 349_696 + 36_000)]
        [0, 1, 1, 1, 2]
        """
        if n_samples <= 0:
            return 0
        whole, rest = divmod(n_samples, self.chunk_samples)
        return whole + (rest > 0 and (whole == 0 or rest >= self.min_tail_s * self.sample_rate))

    def valid_frames(self, n_samples: int) -> NDArray[np.int32]:
        """Return the number of frames of each chunk that librosa's centred STFT would give too.

        Parameters
        ----------
        n_samples
            Length of the track in samples.

        Returns
        -------
        (chunk,) int32
            `frames_per_chunk` for all but the last chunk, which may be partly padding.
        """
        valid = np.full(self.n_chunks(n_samples), self.frames_per_chunk, dtype=np.int32)
        if len(valid):
            rest = n_samples - (len(valid) - 1) * self.chunk_samples
            valid[-1] = min(self.frames_per_chunk, rest // self.hop_length + 1)
        return valid


def chunks(blocks: Iterable[NDArray[np.float32]], grid: Grid) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Cut a stream of mono blocks into zero-padded chunks, holding one chunk in memory.

    Parameters
    ----------
    blocks
        Blocks of mono samples, (samples,) float32, of any lengths.
    grid
        The store's grid.

    Yields
    ------
    chunk : (chunk_samples,) float32
        Reused from one step to the next: copy it to keep it.
    filled : int
        How many of its samples come from the stream; the rest is zero.
    """
    chunk = np.zeros(grid.chunk_samples, dtype=np.float32)
    filled, first = 0, True
    for block in blocks:
        at = 0
        while at < len(block):
            step = min(len(block) - at, grid.chunk_samples - filled)
            chunk[filled : filled + step] = block[at : at + step]
            filled += step
            at += step
            if filled == grid.chunk_samples:
                yield chunk, filled
                filled, first = 0, False
    if filled and (first or filled >= grid.min_tail_s * grid.sample_rate):
        chunk[filled:] = 0
        yield chunk, filled
