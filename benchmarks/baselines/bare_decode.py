"""Decoding and resampling alone: what extraction cannot be faster than.

    python benchmarks/baselines/bare_decode.py FILELIST --jobs 2

A plain pool of processes, largest file first; every block is dropped as soon as it is there. The
decoder is mirstore's own (``--decoder soundfile``: libsndfile and soxr, as a check that mirstore's
is the faster one). Prints one line of JSON: ``steady_s`` from the moment when every process has
its imports to the last song, ``seconds`` with the start.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pipeline.decoding import open_audio

SAMPLE_RATE = 12_000
START_TIMEOUT_S = 120


def by_mirstore(path: str) -> float:
    """Decode a file with mirstore's decoder; return its seconds."""
    with open_audio(path, sample_rate=SAMPLE_RATE) as stream:
        return sum(len(block) for block in stream) / SAMPLE_RATE


def by_soundfile(path: str) -> float:
    """Decode a file with libsndfile and soxr; return its seconds."""
    with soundfile.SoundFile(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

        def blocks() -> Iterator[np.ndarray]:
            for block in file.blocks(65_536, dtype="float32", always_2d=True):
                yield sum(block.T[1:], start=block[:, 0]) / np.float32(file.channels)

        n_samples = sum(len(resampler.resample_chunk(block)) for block in blocks())
        n_samples += len(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    return n_samples / SAMPLE_RATE


DECODERS: dict[str, Callable[[str], float]] = {"mirstore": by_mirstore, "soundfile": by_soundfile}


def meet(barrier: Barrier) -> None:
    """Wait until all processes have been started and have imported this module."""
    barrier.wait(START_TIMEOUT_S)


def main() -> None:
    """Decode all songs of a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("filelist", type=Path, help="text file, an audio file a line")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--decoder", choices=DECODERS, default="mirstore")
    options = parser.parse_args()
    paths = options.filelist.read_text("utf-8").splitlines()
    paths.sort(key=lambda path: -Path(path).stat().st_size)
    begun = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.jobs + 1)
    with context.Pool(options.jobs, meet, (barrier,)) as pool:
        barrier.wait(START_TIMEOUT_S)
        started = time.perf_counter()
        audio_s = sum(pool.imap_unordered(DECODERS[options.decoder], paths, chunksize=1))
        ended = time.perf_counter()
    report = {
        "songs": len(paths),
        "audio_s": audio_s,
        "steady_s": ended - started,
        "seconds": ended - begun,
        "decoder": options.decoder,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
