"""Audio files to mono samples at one rate, block by block: memory does not grow with the track's length."""

import os
from collections.abc import Generator, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline.audio_sources import AudioInfo, Block, Unusable, audio_source
from pipeline.errors import AudioError

__all__ = ["AudioInfo", "AudioStream", "decode", "open_audio"]


def open_audio(path: str | Path, *, sample_rate: int = 12_000) -> "AudioStream":
    """Stream of mono blocks of an audio file at `sample_rate`.

    Parameters
    ----------
    path
        A file of this machine; never understood as a URL.
    sample_rate
        Hz of the blocks.

    Returns
    -------
    AudioStream
        To be used as a context manager and iterated once.

    Raises
    ------
    AudioError
        At stage ``open`` for a file that is no audio; while iterating, at stage ``decode``, when nothing can
        be decoded or samples are not finite. A file that is damaged or cut short further on raises nothing:
        see `AudioStream.truncated`.
    """
    return AudioStream(path, sample_rate=sample_rate)


def decode(path: str | Path, *, sample_rate: int = 12_000) -> tuple[NDArray[np.float32], AudioInfo]:
    """Whole audio file as mono samples at `sample_rate`, and what the file holds.

    Parameters
    ----------
    path, sample_rate
        As of `open_audio`.

    Returns
    -------
    samples
        float32, shape (sample,); full scale is 1, decoded peaks may exceed it.
    info
        Codec, rate and channels of the file.
    """
    with open_audio(path, sample_rate=sample_rate) as stream:
        return np.concatenate(list(stream)), stream.info


class AudioStream:
    """Mono blocks of one audio file, float32 of shape (sample,), at one rate; made by `open_audio`.

    It is iterated once.

    Attributes
    ----------
    info
        What the file holds.
    truncated
        After the iteration: why a part of the audio is missing, in one line; None if nothing is known to be.
    """

    def __init__(self, path: str | Path, *, sample_rate: int) -> None:
        if sample_rate <= 0:
            raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}.")
        self._uri = str(path)
        self._path = os.path.abspath(path)  # also keeps libsndfile from reading "-" as standard input
        self._sample_rate = sample_rate
        try:
            self._source = audio_source(self._path)
        except Unusable as error:
            raise AudioError(self._uri, "open", str(error)) from error
        self.info: AudioInfo = self._source.info
        self.truncated: str | None = None
        self._blocks = self._checked()

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self._blocks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blocks.close()
        self._source.close()

    def _checked(self) -> Generator[NDArray[np.float32]]:
        empty = True
        try:
            for block in _resampled(self._source.blocks(), self._sample_rate):
                if not len(block):
                    continue
                # One pass for the usual case; squares of huge finite samples may overflow.
                if not np.isfinite(np.dot(block, block)) and not np.isfinite(block).all():
                    raise Unusable("has samples that are not finite numbers (NaN or infinity)")
                empty = False
                yield block
        except Unusable as error:
            raise AudioError(self._uri, "decode", str(error)) from error
        if empty:
            raise AudioError(self._uri, "decode", "holds no audio that can be decoded")
        self.truncated = self._source.loss()


def _resampled(blocks: Iterator[Block], sample_rate: int) -> Iterator[NDArray[np.float32]]:
    """Mean of the channels at `sample_rate`; each stretch of one rate has its own resampler."""
    length, start = 0, np.empty(0, np.float32)
    for (rate, scale), stretch in groupby(blocks, key=attrgetter("sample_rate", "scale")):
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        for block in stretch:
            if not len(start):
                start = block.total[:1] * np.float32(scale)
            samples = block.total if rate == sample_rate else resampler.resample_chunk(block.total)
            length += len(samples)
            yield samples * np.float32(scale)  # after resampling, where there are fewer samples
        if rate != sample_rate:
            samples = resampler.resample_chunk(np.empty(0, np.float32), last=True)
            length += len(samples)
            yield samples * np.float32(scale)
    if not length:
        yield start  # one sample at a high rate rounds to none at a low one, yet is audio
