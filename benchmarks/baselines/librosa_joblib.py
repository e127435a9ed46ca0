"""The script that a competent user would write: librosa, joblib and torch, one .npz a song.

    python benchmarks/baselines/librosa_joblib.py FILELIST OUTDIR --jobs 2

Keeps for every song what mirstore keeps: 12 kHz audio as int16, log-mel and MFCC as float16, CNN
embeddings as float32, cut into chunks of 29.1 s. Where one could do it either way, the way that is
faster for this script is taken: files are written uncompressed (``--compressed`` is the other way),
without checksums and without fsync; songs come largest first if FILELIST has them so; arithmetic
has one thread a process; the network pools before its ELU, which gives the same numbers sooner.
Prints one line of JSON.
"""

import argparse
import json
import resource
import time
from functools import lru_cache
from pathlib import Path

import joblib
import librosa
import numpy as np
import torch

from features.cnn import ChoiNetwork
from features.weights import load_weights

SAMPLE_RATE = 12_000
N_FFT, HOP, N_MELS, N_MFCC = 512, 256, 96, 90
FRAMES = 1366
CHUNK = FRAMES * HOP
MIN_TAIL = 3 * SAMPLE_RATE
FLOOR = 1e-10
INT16_SCALE = 16_384  # 6 dB of headroom


@lru_cache(maxsize=1)
def network() -> ChoiNetwork:
    """Return the plain network, loaded once a process."""
    torch.set_num_threads(1)
    return load_weights("random:0", "thesis").network()


def n_chunks(n_samples: int) -> int:
    """Return how many chunks a song has: a short tail is dropped unless it is all there is."""
    whole, rest = divmod(n_samples, CHUNK)
    return whole + (rest >= MIN_TAIL or (rest > 0 and whole == 0))


def features_of_song(samples: np.ndarray) -> dict[str, np.ndarray]:
    """Return every array of a song.

    Parameters
    ----------
    samples
        (samples,) float32, mono, 12 kHz.

    Returns
    -------
    dict
        ``audio`` int16 (chunk, sample), ``logmel`` float16 (chunk, 96, 1366), ``mfcc`` float16
        (chunk, 90, 1366), ``embedding`` float32 (chunk, 1024).
    """
    n = n_chunks(len(samples))
    power = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP, window="hamming", center=True,
        pad_mode="constant", power=2.0, n_mels=N_MELS, htk=True, norm=None,
    )  # fmt: skip
    log_mel = np.log(np.maximum(power, FLOOR))
    log_mel = librosa.util.fix_length(
        log_mel, size=n * FRAMES, axis=1, constant_values=np.log(np.float32(FLOOR))
    )
    mfcc = librosa.feature.mfcc(S=log_mel, n_mfcc=N_MFCC, dct_type=2, norm="ortho")
    audio = librosa.util.fix_length(samples, size=n * CHUNK)
    log_mels = np.ascontiguousarray(log_mel.reshape(N_MELS, n, FRAMES).swapaxes(0, 1))
    with torch.inference_mode():
        embedding = network()(torch.from_numpy(log_mels)).numpy()
    return {
        "audio": np.clip(np.rint(audio * INT16_SCALE), -32768, 32767).astype(np.int16).reshape(n, CHUNK),
        "logmel": log_mels.astype(np.float16),
        "mfcc": mfcc.reshape(N_MFCC, n, FRAMES).swapaxes(0, 1).astype(np.float16),
        "embedding": embedding,
    }


def extract(path: str, target: Path, *, compressed: bool) -> tuple[float, int]:
    """Extract one song; return its seconds and the process's peak resident bytes."""
    samples, _ = librosa.load(path, sr=SAMPLE_RATE, mono=True, res_type="soxr_hq")
    (np.savez_compressed if compressed else np.savez)(target, **features_of_song(samples))
    return len(samples) / SAMPLE_RATE, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Extract all songs of a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("filelist", type=Path, help="text file, an audio file a line")
    parser.add_argument("outdir", type=Path, help="where the .npz files go")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--compressed", action="store_true", help="np.savez_compressed")
    options = parser.parse_args()
    begun = time.perf_counter()
    options.outdir.mkdir(parents=True, exist_ok=True)
    paths = options.filelist.read_text("utf-8").splitlines()
    done = joblib.Parallel(n_jobs=options.jobs, backend="loky")(
        joblib.delayed(extract)(
            path, options.outdir / f"{i:05d} {Path(path).stem}.npz", compressed=options.compressed
        )
        for i, path in enumerate(paths)
    )
    report = {
        "songs": len(done),
        "audio_s": sum(audio_s for audio_s, _ in done),
        "seconds": time.perf_counter() - begun,
        "worker_peak_bytes": max((peak for _, peak in done), default=0),
        "bytes_written": sum(path.stat().st_size for path in options.outdir.iterdir()),
        "compressed": options.compressed,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    # By name, so that the processes import this module once and keep their network.
    import librosa_joblib

    librosa_joblib.main()
