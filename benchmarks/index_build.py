"""A synthetic index of any size over a few real parts: what `index.py` measures.

    python benchmarks/index_build.py FOLDER TRACKS REAL_PARTS

Makes ``FOLDER/catalog.yaml`` and its store, and next to FOLDER the real parts, for all stores there. Tracks
come in parts of 16 with 128 chunks and four arrays; rows of the index go through `Index.commit`, in batches,
then `Index.compact`. Every part has a folder and a description of its rows of its own; its arrays and
coordinates are symbolic links to those of one of a few real parts, in turn. Their log-mel is noise, their other
arrays are zeros.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.catalog import load_catalog
from pipeline.definitions import Feature
from pipeline.jobs import computed_with
from pipeline.store.folder import Folder
from pipeline.store.index import Index
from pipeline.store.lineage import provenance
from pipeline.store.parts import PartWriter
from pipeline.store.records import ArrayRow, TrackRow

FEATURES = {
    "audio": {"kind": "audio"},
    "logmel": {"kind": "log_mel", "from": "audio"},
    "mfcc": {"kind": "mfcc", "from": "logmel", "n_mfcc": 90},
    "embedding": {"kind": "cnn", "from": "logmel", "weights": "random:0"},
}
COLLECTIONS = ("archive", "charts")
# Chunks of the tracks of a part, 8 on average: songs of 2 to 6 minutes.
CHUNKS = (4, 5, 6, 6, 7, 7, 8, 8, 8, 8, 9, 9, 10, 10, 11, 12)
ROWS = sum(CHUNKS)
PARTS_A_COMMIT = 128
GENRES = ("folk", "rock", "jazz", "electronic", "classical", "hip hop", "ambient", "metal", "reggae", "pop")
DISTINCT_ROWS = 64
DESCRIBED = ("track_id", "row_start", "n_chunks")


def track_row(number: int, part: str, row_start: int, n_samples: int) -> TrackRow:
    """Return the row of a track; one number always gives the same."""
    mixed = (number * 2_654_435_761) % 2**32  # tracks are committed in no order of their names
    artist, album = f"Artist {mixed % 99_991:05d}", f"Album {mixed % 7 + 1}"
    collection = COLLECTIONS[number % 2]
    track_id = f"{collection}/{artist}/{album}/{mixed:010d} - A Title.mp3"
    genre, year = GENRES[mixed % len(GENRES)], 1960 + mixed % 65
    tags = {"title": f"A Title {mixed}", "artist": artist, "album": album, "genre": genre, "year": year}
    duration_s = n_samples / 12_000
    return TrackRow(
        track_id=track_id,
        collection=collection,
        uri=f"/srv/music/{track_id}",
        size=int(duration_s * 24_000) + mixed % 4096,
        mtime_ns=1_600_000_000_000_000_000 + mixed * 1_000_003,
        status="ok",
        labels=json.dumps({"genre": genre, "split": "train"}) if number % 4 == 0 else None,
        content_hash=hashlib.sha256(track_id.encode()).hexdigest(),
        codec="mp3",
        decoder="ffmpeg",
        source_rate=44_100,
        channels=2,
        peak=0.5 + (mixed % 1000) / 2000,
        n_samples=n_samples,
        duration_s=duration_s,
        part=part,
        row_start=row_start,
        n_chunks=-(-n_samples // 349_696),
        file_tags=json.dumps(tags) if number % 5 < 3 else None,
    )


def part_rows(number: int) -> tuple[str, list[TrackRow]]:
    """Return name and tracks of a part."""
    part = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
    rows, start = [], 0
    for slot, n_chunks in enumerate(CHUNKS):
        track = number * len(CHUNKS) + slot
        rows.append(track_row(track, part, start, n_chunks * 349_696 - (track * 7919) % 300_000))
        start += n_chunks
    return part, rows


def real_parts(folder: Folder, features: tuple[Feature, ...], count: int) -> list[str]:
    """Write parts whose log-mel is noise that compresses hardly better than music; return their names."""
    random = np.random.default_rng(0)
    feature = next(feature for feature in features if feature.kind == "log_mel")
    nothing = {other.name: np.zeros(other.row_shape, other.dtype) for other in features if other != feature}
    levels = np.linspace(-2.0, -9.0, feature.row_shape[0])[:, None]
    distinct = [
        feature.stored((levels + random.normal(0, 1.2, feature.row_shape)).astype(np.float32))
        for _ in range(DISTINCT_ROWS)
    ]
    written = []
    for _ in range(count):
        with PartWriter(folder, features, computed_with(features)) as part:
            for row in random.integers(DISTINCT_ROWS, size=ROWS):
                part.append(feature.name, distinct[row])
                for name, zeros in nothing.items():
                    part.append(name, zeros)
            for slot, n_chunks in enumerate(CHUNKS):
                part.add_track(str(slot), np.full(n_chunks, feature.grid.frames_per_chunk, np.int32))
            written.append(part.finish()[0].part)
    return written


def array_row(feature: Feature, versions: str) -> ArrayRow:
    """Return the row of ``arrays`` of one feature, of a part still without a name."""
    return ArrayRow(
        part="",
        feature=feature.name,
        fingerprint=feature.fingerprint,
        kind=feature.kind,
        array=feature.array_name,
        rows=ROWS,
        bytes=ROWS * feature.row_bytes * 3 // 4,
        dtype=str(feature.dtype),
        row_shape=json.dumps(feature.row_shape),
        parameters=json.dumps(feature.parameters(), sort_keys=True),
        computed_with=versions,
    )


def make_part(store: Path, part: str, tracks: list[TrackRow], real: Path) -> None:
    """Make a part's folder: the description of its rows is its own, all else is a real one's."""
    folder = store / "parts" / part
    folder.mkdir(parents=True)
    described = [{name: getattr(track, name) for name in DESCRIBED} for track in tracks]
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"tracks": described}}
    (folder / "zarr.json").write_text(json.dumps(group), "utf-8")
    for name in os.listdir(real):
        if name != "zarr.json":
            (folder / name).symlink_to(os.path.relpath(real / name, folder))


def build(folder: Path, n_tracks: int, n_real: int) -> None:
    """Make a catalog and a store of at most so many tracks, whole parts of them."""
    folder.mkdir()
    collections = {name: {"path": f"./{name}"} for name in COLLECTIONS}
    catalog = {"version": 1, "store": "./store", "collections": collections, "features": FEATURES}
    (folder / "catalog.yaml").write_text(json.dumps(catalog), "utf-8")  # JSON is YAML
    features = tuple(load_catalog(folder / "catalog.yaml").resolved_features().values())
    real = Folder(folder.parent / "real")
    if not real.exists("names.json"):
        real.write("names.json", json.dumps(real_parts(real, features, n_real)).encode())
    names = json.loads(real.read("names.json"))
    versions = computed_with(features)
    like = [array_row(feature, versions[feature.name]) for feature in features]
    index = Index.create(folder / "store", features[0].grid)
    about = provenance("mirstore extract", catalog="0" * 12)
    n_parts = n_tracks // len(CHUNKS)
    for start in range(0, n_parts, PARTS_A_COMMIT):
        tracks: list[TrackRow] = []
        arrays: list[ArrayRow] = []
        for number in range(start, min(n_parts, start + PARTS_A_COMMIT)):
            part, rows = part_rows(number)
            source = names[number % len(names)]
            make_part(folder / "store", part, rows, real.path / "parts" / source)
            tracks += rows
            arrays += [replace(row, part=part) for row in like]
        index.commit(arrays=arrays, added=tracks, provenance=about)
    index.compact(about)


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
