"""Freeze the batch-norm statistics of the published Choi weights on a fixed set of songs.

The five later batch norms of the published weights used each batch's own statistics. This makes the files
that replace them, `features/statistics/choi2016.safetensors` and `thesis.safetensors` (whose input norm over
mel bands is calibrated too), from the 16 songs of Debian's package singularity-music 007-2:

    python benchmarks/calibrate_choi2016.py cnn_weights_theano.h5 .../usr/share/games/singularity/music

About a minute and 600 MB on two cores.
"""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from features.cnn import CHUNK_FRAMES, calibrate
from features.spectral import LogMelParameters, log_mel
from features.weight_formats import save_safetensors
from features.weights import EXPECTED_INPUT, load_weights

STATISTICS = Path(__file__).resolve().parents[1] / "features" / "statistics"


def chunks(songs: list[Path], parameters: LogMelParameters) -> Iterator[NDArray[np.float32]]:
    """Whole chunks of each song; `top_db` is counted from the chunk's own maximum."""
    for song in songs:
        audio, rate = soundfile.read(song, dtype="float32", always_2d=True)
        mono = soxr.resample(audio.mean(axis=1), rate, parameters.sample_rate, quality="HQ")
        whole = log_mel(mono, replace(parameters, top_db=None))
        for start in range(0, whole.shape[1] - CHUNK_FRAMES + 1, CHUNK_FRAMES):
            chunk = whole[:, start : start + CHUNK_FRAMES]
            if parameters.top_db is not None:
                chunk = np.maximum(chunk, chunk.max() - np.float32(parameters.top_db))
            yield chunk


def main() -> None:
    """Calibrate both variants and write their statistics."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="cnn_weights_theano.h5")
    parser.add_argument("music", type=Path, help="folder with the 16 .ogg files")
    parser.add_argument("--out", type=Path, default=STATISTICS, help="folder for the two files")
    options = parser.parse_args()
    songs = sorted(options.music.rglob("*.ogg"))
    if len(songs) != 16:
        parser.error(f"expected the 16 songs of singularity-music, found {len(songs)}")
    for variant in ("choi2016", "thesis"):
        log_mels = np.stack(list(chunks(songs, EXPECTED_INPUT[variant])))
        network = load_weights(options.weights, variant, statistics="file").network()
        calibrate(network, log_mels, with_input_norm=variant == "thesis")
        prefixes = ("norms.", "input_norm.") if variant == "thesis" else ("norms.",)
        state = {
            name: tensor.contiguous()
            for name, tensor in network.state_dict().items()
            if name.startswith(prefixes) and name.endswith(("running_mean", "running_var"))
        }
        card = {
            "what": f"batch-norm statistics for the published Choi weights as {variant}",
            "made_by": "benchmarks/calibrate_choi2016.py",
            "weights_file_sha256": hashlib.sha256(options.weights.read_bytes()).hexdigest(),
            "calibrated_on": "the 16 songs of Debian's package singularity-music, all whole chunks of 1366 frames",
            "songs": {song.name: hashlib.sha256(song.read_bytes()).hexdigest() for song in songs},
            "n_chunks": len(log_mels),
        }
        path = options.out / f"{variant}.safetensors"
        save_safetensors(path, state, card, "")
        print(f"{path.name}: {len(log_mels)} chunks, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
