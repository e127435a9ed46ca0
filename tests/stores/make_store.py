"""The stores that the tests keep of every format: songs, catalog and this script made them.

python tests/stores/make_store.py FOLDER NAME     (with the mirstore whose format it is to be)

writes tests/stores/NAME.tar.gz and, by what this mirstore reads in it, NAME.json. FOLDER is where songs and
store are made; it becomes part of the tracks' uris.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import soundfile as sf

HERE = Path(__file__).parent
SECONDS = {"a.wav": 2.0, "b.flac": 4.0, "sub/c.ogg": 3.1, "gone.wav": 1.5}
CATALOG = """\
version: 1
store: ./store
grid: {hop_length: 256, frames_per_chunk: 64, min_tail_s: 0.5}
collections:
  demo: {path: ./music}
  tagged: {manifest: ./tagged.csv}
features:
  audio: {kind: audio, sample_rate: 12000, dtype: int16}
  logmel: {kind: log_mel, from: audio, n_fft: 512, n_mels: 16}
"""
MFCC = "  mfcc: {kind: mfcc, from: logmel, n_mfcc: 6}\n"


def make(folder: Path, name: str) -> None:
    """Extract twice, with a file that goes, and pack the store."""
    rng = np.random.default_rng(0)
    for path, seconds in SECONDS.items():
        (folder / "music" / path).parent.mkdir(parents=True, exist_ok=True)
        sf.write(folder / "music" / path, 0.1 * rng.standard_normal(round(12_000 * seconds)), 12_000)
    (folder / "music" / "broken.wav").write_bytes(b"RIFF not audio")
    (folder / "tagged.csv").write_text("uri,genre,year\nmusic/b.flac,folk,1999\n")
    for catalog in (CATALOG, CATALOG + MFCC):
        (folder / "catalog.yaml").write_text(catalog)
        extract(folder)
    (folder / "music" / "gone.wav").unlink()
    extract(folder)
    with tarfile.open(HERE / f"{name}.tar.gz", "w:gz") as archive:
        archive.add(folder / "store", "store", filter=lambda entry: None if ".lock" in entry.name else entry)
    (HERE / f"{name}.json").write_text(
        json.dumps(contents(folder / "store"), indent=1, sort_keys=True) + "\n"
    )


def extract(folder: Path) -> None:
    """Run the command line."""
    command = Path(sys.executable).with_name("mirstore")
    subprocess.run([command, "extract", "--workers", "1"], cwd=folder, check=True)


def contents(store: Path) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every track's stored rows by version of a feature, and its status."""
    from pipeline import FeatureStore

    opened = FeatureStore(store)
    found: dict[str, dict[str, str]] = {}
    for track_id, status in opened.tracks["status"].items():
        found[track_id] = {"status": status}
        for name in opened:
            rows = opened[name].stored(track_id)
            version = f"{name}@{opened[name].fingerprint}"
            found[track_id][version] = hashlib.sha256(rows.tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
