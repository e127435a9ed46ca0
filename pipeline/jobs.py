"""What one Dask task does: whole tracks in, one part out; or one part in, more arrays of it out."""

import json
import os
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from features.framing import Grid, chunks
from pipeline.computation import FeatureChain, arithmetic
from pipeline.decoding import AudioStream, open_audio
from pipeline.definitions import Feature
from pipeline.errors import AudioError, StoreDamagedError, StoreError
from pipeline.remote_files import local_copy
from pipeline.store.erasures import FORGOTTEN, blocked_contents
from pipeline.store.lineage import library_versions
from pipeline.store.location import FORMAT_FILE, Location
from pipeline.store.parts import PartWriter, part_tracks
from pipeline.store.records import ArrayRow, TrackRow
from pipeline.store.shard_reader import ShardReader
from pipeline.store.shards import new_metadata
from pipeline.urls import is_url

ROWS_PER_READ = 8
_REFUSAL = "the content of a track that was forgotten; `mirstore forget --allow` lets it be extracted"


@dataclass(frozen=True, slots=True)
class ExtractJob:
    """Decode some files and compute every feature of them into a new part.

    `tracks` are rows as the index will have them, but for what only decoding tells.
    """

    store: Location
    tracks: tuple[TrackRow, ...]
    features: tuple[Feature, ...]

    def split(self) -> list["ExtractJob"]:
        """Return one job a track, to find the file that kills workers."""
        return [replace(self, tracks=(track,)) for track in self.tracks]


@dataclass(frozen=True, slots=True)
class ComputeJob:
    """Compute features that a part lacks from those it has; no audio file is opened."""

    store: Location
    part: str
    features: tuple[Feature, ...]
    sources: tuple[tuple[Feature, str], ...]
    n_tracks: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """What the coordinator is told: records, never arrays."""

    arrays: tuple[ArrayRow, ...]
    tracks: tuple[TrackRow, ...]
    seconds: dict[str, float]
    peak_rss: int
    worker_pid: int
    damage: str | None = None


def computed_with(features: tuple[Feature, ...]) -> dict[str, str]:
    """Versions and arithmetic of what computes features here, JSON by name; recorded, never hashed."""
    return {f.name: json.dumps({**library_versions(), **arithmetic(f)}, sort_keys=True) for f in features}


def prepare(features: tuple[Feature, ...], store: Location) -> None:
    """Load what `features` need into this process: libraries, filter banks, networks; and reach the store.

    Raises
    ------
    MirstoreError
        What cannot be loaded, or a bucket that this process has no credentials for.
    """
    store.exists(FORMAT_FILE)
    for feature in features:  # imports Zarr, for which the first job would wait
        new_metadata(feature, feature.dims, {})
    FeatureChain(features, lambda _name, _row: None)
    computed_with(features)


def run(job: ExtractJob | ComputeJob) -> JobResult:
    """Run one job.

    Raises
    ------
    StoreError
        If the store refuses to be written; a broken song is a row of the result instead.
    """
    if isinstance(job, ExtractJob):
        return _extract(job)
    try:
        return _compute(job)
    except StoreDamagedError as error:  # one bad part must not keep the others from being computed
        return JobResult((), (), {}, 0, os.getpid(), damage=str(error))


def _extract(job: ExtractJob) -> JobResult:
    started = time.perf_counter()
    writing: dict[str, float] = defaultdict(float)
    grid = job.features[0].grid
    forgotten = blocked_contents(job.store)
    with PartWriter(job.store, job.features, computed_with(job.features)) as part:

        def store_row(feature: str, row: NDArray[np.generic]) -> None:
            begun = time.perf_counter()
            part.append(feature, row)
            writing["write"] += time.perf_counter() - begun

        chain = FeatureChain(job.features, store_row)
        rows = [_extract_track(track, part, chain, grid, forgotten) for track in job.tracks]
        begun = time.perf_counter()
        arrays: list[ArrayRow] = []
        if part.n_rows:
            arrays = part.finish()
        else:
            part.abandon()
        writing["write"] += time.perf_counter() - begun
    return _result(arrays, rows, {**chain.seconds, **writing}, time.perf_counter() - started)


def _result(
    arrays: list[ArrayRow], tracks: list[TrackRow], seconds: dict[str, float], total: float
) -> JobResult:
    shares = {**seconds, "total": total}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return JobResult(tuple(arrays), tuple(tracks), shares, peak, os.getpid())


def _extract_track(
    track: TrackRow, part: PartWriter, chain: FeatureChain, grid: Grid, forgotten: AbstractSet[str]
) -> TrackRow:
    """Decode one file into the part and return its row, failed or not."""
    first_row = part.n_rows
    n_samples, peak = 0, 0.0
    outcome: TrackRow
    try:
        begun = time.perf_counter()
        with local_copy(track.uri) as (path, content_hash):
            chain.seconds["fetch" if is_url(track.uri) else "hash"] += time.perf_counter() - begun
            track = replace(track, content_hash=content_hash)
            if content_hash in forgotten:
                raise AudioError(track.uri, FORGOTTEN, _REFUSAL)
            with open_audio(path, sample_rate=grid.sample_rate) as stream:
                counted = _CountedBlocks(stream)
                for chunk, filled in chunks(counted, grid):
                    peak = max(peak, float(chunk[:filled].max()), -float(chunk[:filled].min()))
                    chain.push_audio(chunk)
                chain.finish_track()
                n_samples = counted.n_samples
        outcome = replace(
            track,
            status="ok",
            truncated=stream.truncated,
            codec=stream.info.codec,
            decoder=stream.info.decoder,
            source_rate=stream.info.sample_rate,
            channels=stream.info.channels,
            file_tags=json.dumps(dict(stream.info.tags), ensure_ascii=False, sort_keys=True)
            if stream.info.tags
            else None,
            peak=peak,
            n_samples=n_samples,
            duration_s=n_samples / grid.sample_rate,
            part=part.part,
            row_start=first_row,
            n_chunks=grid.n_chunks(n_samples),
        )
    except StoreError:
        raise
    except AudioError as error:
        outcome = replace(track, status="failed", stage=error.stage, reason=_one_line(error.reason))
    except FileNotFoundError:
        outcome = replace(track, status="failed", stage="open", reason="the file vanished during the run")
    except OSError as error:
        outcome = replace(
            track, status="failed", stage="open", reason=_one_line(error.strerror or str(error))
        )
    except Exception as error:  # a bug must cost one song, not the collection; its name is kept
        outcome = replace(
            track,
            status="failed",
            stage="feature",
            reason=_one_line(f"unexpected {type(error).__name__}: {error}"),
        )
    if outcome.status == "ok":
        part.add_track(track.track_id, grid.valid_frames(n_samples), track.content_hash)
    else:
        chain.reset()
        part.level()
        if part.n_rows > first_row:  # what a failed track left stays as rows without an owner
            n_left = part.n_rows - first_row
            part.add_track(track.track_id, np.zeros(n_left, dtype=np.int32), track.content_hash)
    return outcome


class _CountedBlocks:
    """Blocks of a stream, their samples counted."""

    def __init__(self, stream: AudioStream) -> None:
        self.n_samples = 0
        self._stream = stream

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block in self._stream:
            self.n_samples += len(block)
            yield block


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _compute(job: ComputeJob) -> JobResult:
    started = time.perf_counter()
    readers = {
        feature.name: (feature, ShardReader(job.store, job.part, name)) for feature, name in job.sources
    }
    with PartWriter(job.store, job.features, computed_with(job.features), part=job.part) as part:
        chain = FeatureChain(job.features, part.append)
        for first, count in part_tracks(job.store, job.part):  # dead ones too: arrays stay aligned
            if any(readers[name][1].erased(first, first + count).any() for name in chain.sources):
                part.append_nothing(count)
                continue
            for source in chain.sources:
                feature, reader = readers[source]
                for start in range(first, first + count, ROWS_PER_READ):
                    for row in reader.rows(start, min(first + count, start + ROWS_PER_READ)):
                        chain.push(source, feature.values(row))
            chain.finish_track()
        rows = part.finish()
    return _result(rows, [], chain.seconds, time.perf_counter() - started)
