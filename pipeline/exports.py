"""Export: features of a store as files that need no mirstore to be read."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StoreDamagedError, StoreError, StoreWriteError, did_you_mean
from pipeline.export_formats import COORDINATES, FORMATS
from pipeline.reports import Progress
from pipeline.store.chunk_table import shared_dims
from pipeline.store.reading import FeatureStore
from pipeline.store.stored_feature import StoredFeature

# Readers of Parquet take a whole folder, but for names that begin so.
MANIFEST = "_manifest.json"
TRACKS = "_tracks.csv"
# Where a track lies in the store and on the disk of whoever exports.
_INTERNAL = ("uri", "mtime_ns", "part", "row_start")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Parameters
    ----------
    folder, format
        Where and as what.
    tracks, chunks, files, bytes
        How much.
    failed
        Why a track could not be read, by `track_id`.
    lacking
        How many chosen tracks were left out, as they lack one of the features.
    """

    folder: str
    format: str
    tracks: int
    chunks: int
    files: int
    bytes: int
    failed: dict[str, str]
    lacking: int


def export(
    store: FeatureStore,
    folder: "str | os.PathLike[str]",
    *,
    features: Sequence[str],
    format: str,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExportReport:
    """Write features of the store's tracks to a new folder, a track at a time.

    Values are float32, audio with full scale 1. ``_tracks.csv`` has the tracks with their labels;
    ``_manifest.json``, written last, says what everything is, with a SHA-256 of each file.

    Parameters
    ----------
    store
        An open store; a selection exports its tracks.
    folder
        To be made, or empty.
    features
        Names, as for indexing the store. Tracks that lack one are left out.
    format
        ``npz``: a file a track; ``parquet``: a row a chunk, for ``pandas.read_parquet(folder)``; ``zarr``: one
        group, for ``xarray.open_zarr(folder)``.
    on_progress
        Called after each track.

    Returns
    -------
    ExportReport
        A track whose bytes are damaged is named in it, and stops nothing.

    Raises
    ------
    UnknownNameError
        If there is no such feature.
    StoreError
        If the folder is not empty, or there is nothing to export.
    StoreWriteError
        If it cannot be written.
    """
    if format not in FORMATS:
        raise StoreError(
            f"expected a format of {', '.join(FORMATS)}, got {format!r}.{did_you_mean(format, FORMATS)}"
        )
    chosen = {name: store[name] for name in dict.fromkeys(features)}
    if not chosen:
        raise StoreError("name at least one feature.")
    spans = store.spans
    has = [all(feature.has_part(part) for feature in chosen.values()) for part in spans.part]
    wanted = spans.taken(np.array(has, dtype=bool))
    if not len(spans):
        some = store.index_rows(["part"])["part"].notna().any()
        raise StoreError(f"nothing to export: {'no track matches' if some else 'the store has no tracks'}.")
    if not len(wanted):
        raise StoreError(f"nothing to export: of {len(spans):,} tracks none has {', '.join(chosen)}.")
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise StoreError(f"{place} is not empty. Name a new folder, or empty it.")
        return _Export(store, place, chosen, format).run(
            wanted.track_ids, len(spans) - len(wanted), on_progress
        )
    except OSError as error:
        raise StoreWriteError(f"cannot write to {place}: {error.strerror or error}.") from error


class _Export:
    """One export under way."""

    def __init__(
        self, store: FeatureStore, folder: Path, features: Mapping[str, StoredFeature], format: str
    ) -> None:
        self.store, self.folder, self.features, self.format = store, folder, features, format

    def run(
        self, track_ids: Sequence[str], lacking: int, on_progress: Callable[[Progress], None]
    ) -> ExportReport:
        """Write everything, the manifest last."""
        store, spans = self.store, self.store.spans
        numbers = [store.number(track_id) for track_id in track_ids]
        n_chunks = int(spans.n_chunks[numbers].sum())
        exporter = FORMATS[self.format](self.folder, self.features, n_chunks)
        progress = Progress(songs_total=len(numbers), work_total=float(n_chunks))
        tracks: list[dict[str, Any]] = []
        failed: dict[str, str] = {}
        for track_id, number in zip(track_ids, numbers, strict=True):
            n_samples, count = int(spans.n_samples[number]), int(spans.n_chunks[number])
            valid_frames = store.grid.valid_frames(n_samples)
            try:
                values = {name: feature.values(track_id) for name, feature in self.features.items()}
            except StoreDamagedError as error:
                failed[track_id] = str(error)
            else:
                start_s = np.arange(count, dtype=np.float64) * store.grid.chunk_s
                file, first = exporter.add(track_id, values, start_s, valid_frames)
                tracks.append({"id": track_id, "file": file, "first_row": first, "rows": count})
            progress.songs_done += 1
            progress.work_done += count
            progress.failures = len(failed)
            progress.audio_s += n_samples / store.grid.sample_rate
            on_progress(progress)
        exporter.close()
        self._write_tracks(tracks)
        files = {
            file.relative_to(self.folder).as_posix(): _sum(file)
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        self._write_manifest(tracks, failed, lacking, files)
        return ExportReport(
            folder=str(self.folder),
            format=self.format,
            tracks=len(tracks),
            chunks=sum(track["rows"] for track in tracks),
            files=len(files),
            bytes=sum(file["bytes"] for file in files.values()),
            failed=failed,
            lacking=lacking,
        )

    def _write_tracks(self, tracks: Sequence[Mapping[str, Any]]) -> None:
        table = self.store.tracks.drop(columns=list(_INTERNAL)).loc[[track["id"] for track in tracks]]
        for name in [name for name, kind in table.dtypes.items() if kind.kind == "O"]:
            table[name] = [json.dumps(cell) if isinstance(cell, list) else cell for cell in table[name]]
        table.to_csv(self.folder / TRACKS, quoting=csv.QUOTE_MINIMAL, encoding="utf-8", lineterminator="\n")

    def _write_manifest(
        self,
        tracks: Sequence[Mapping[str, Any]],
        failed: Mapping[str, str],
        lacking: int,
        files: Mapping[str, Mapping[str, Any]],
    ) -> None:
        dims = shared_dims(list(self.features.values()))
        about = {
            "format": self.format,
            "mirstore": version("mirstore"),
            "store": str(self.store.location),
            "snapshot": self.store.snapshot,
            "grid": asdict(self.store.grid),
            "values": "float32; audio with full scale 1",
            "features": [
                {
                    "name": name,
                    "fingerprint": feature.fingerprint,
                    "kind": feature.kind,
                    "parameters": feature.parameters,
                    "dtype": "float32",
                    "stored_dtype": str(feature.dtype),
                    "shape": list(feature.row_shape),
                    "dims": list(names),
                }
                for (name, feature), names in zip(self.features.items(), dims, strict=True)
            ],
            "coordinates": list(COORDINATES),
            "lacking": lacking,
            "failed": failed,
            "tracks": [
                {**track, "labels": labels}
                for track, labels in zip(tracks, self._labels(tracks), strict=True)
            ],
            "files": files,
        }
        draft = self.folder / f".{MANIFEST}"
        draft.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, self.folder / MANIFEST)

    def _labels(self, tracks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        given = self.store.given_labels.loc[[track["id"] for track in tracks]]
        for sources in given.itertuples(index=False):
            labels: dict[str, Any] = {}
            for text in sources:
                labels.update(json.loads(text) if isinstance(text, str) else {})
            yield labels


def _sum(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
