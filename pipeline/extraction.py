"""Extraction: from a catalog to a store that has every feature of every track.

One song's way: scan -> plan -> (in a worker: decode -> chunks -> features -> part) -> commit.
Only this process commits, so no two writers ever meet in the index.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.catalog import Catalog, load_catalog
from pipeline.collections import Scan, scan
from pipeline.definitions import Feature
from pipeline.errors import CatalogError, ClusterError, StoreDamagedError, UnknownNameError, did_you_mean
from pipeline.planning import (
    INDEXED_COLUMNS,
    Action,
    Plan,
    batches,
    estimated_rows,
    files_to_hash,
    plan,
    wanted_features,
)
from pipeline.reports import ExtractReport, Progress
from pipeline.store.erasures import blocked_hashes, name_hash
from pipeline.store.index import Index
from pipeline.store.lineage import command_line, provenance
from pipeline.store.location import Location, location_of
from pipeline.store.records import ArrayRow, TrackRow

if TYPE_CHECKING:
    from pipeline.cluster import Job, Killer
    from pipeline.jobs import JobResult


# Guess of the work, in chunks of decoding, that a track of the cache is: only the time left depends on it.
WORK_OF_COMPUTING = 3.0


def plan_extraction(
    catalog: Catalog | str | Path,
    *,
    collections: Sequence[str] = (),
    features: Sequence[str] = (),
    retry_failed: bool = False,
) -> Plan:
    """Return what `extract` would do, without doing it.

    Parameters
    ----------
    catalog
        A catalog or the path of one.
    collections, features
        Names; empty for all. A feature brings what it is computed from.
    retry_failed
        Try failed files again though they have not changed.

    Returns
    -------
    Plan

    Raises
    ------
    CatalogError, UnknownNameError
        If the catalog or a name is wrong.
    StoreFormatError, StoreDamagedError
        If there is a store that cannot be read.
    """
    catalog = catalog if isinstance(catalog, Catalog) else load_catalog(catalog)
    store = location_of(catalog.store)
    resolved = _resolved(catalog, features)
    grid = resolved[0].grid
    index = Index.open_or_none(store, grid)
    scanned = scan(catalog, only=collections or None)
    return _planned(catalog, scanned, index, resolved, collections=collections, retry_failed=retry_failed)


def _resolved(catalog: Catalog, names: Sequence[str]) -> tuple[Feature, ...]:
    features = catalog.resolved_features()
    for name in names:
        if name not in features:
            raise UnknownNameError(
                f"there is no feature {name!r} in the catalog.{did_you_mean(name, features)}"
            )
    return wanted_features(features, names)


def _planned(
    catalog: Catalog,
    scanned: Scan,
    index: Index | None,
    features: tuple[Feature, ...],
    *,
    collections: Sequence[str],
    retry_failed: bool,
) -> Plan:
    blocked = blocked_hashes(index.location) if index else set()
    if blocked:  # forgotten tracks stay so until they are allowed again
        names = scanned.tracks["track_id"]
        forgotten = np.array([name_hash(name) in blocked for name in names], dtype=bool)
        scanned = replace(scanned, tracks=scanned.tracks[~forgotten].reset_index(drop=True))
    indexed = index.tracks(INDEXED_COLUMNS) if index else Index.no_tracks()
    arrays = index.arrays(["part", "fingerprint"]) if index else Index.no_arrays()
    hashes = {}
    for uri in files_to_hash(scanned.tracks, indexed):
        try:
            with open(uri, "rb") as file:
                hashes[uri] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            continue  # extraction will meet it and say why
    return plan(
        scanned.tracks,
        scanned.problems,
        indexed,
        arrays,
        features,
        collections=list(collections or catalog.collections),
        hashes=hashes,
        retry_failed=retry_failed,
    )


def extract(
    catalog: Catalog | str | Path,
    *,
    collections: Sequence[str] = (),
    features: Sequence[str] = (),
    workers: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractReport:
    """Bring the store up to date with the catalog.

    A broken song becomes a row of ``store.failures``; a kill at any moment loses only the jobs in
    flight, and the next call goes on from there.

    Parameters
    ----------
    catalog
        A catalog or the path of one.
    collections, features
        Names; empty for all. A feature brings what it is computed from.
    workers
        Worker processes; None is one a core.
    scheduler
        Address of a running Dask scheduler to use instead.
    retry_failed
        Try failed files again though they have not changed.
    on_plan, on_progress
        Called with the plan once, and with the progress some times a second.

    Returns
    -------
    ExtractReport

    Raises
    ------
    CatalogError, UnknownNameError
        If the catalog or a name is wrong.
    StoreLockedError
        If another command is writing to the store.
    StoreFormatError, StoreDamagedError, StoreWriteError
        If the store cannot be used.
    ClusterError
        If the scheduler cannot be used.
    """
    begun = time.monotonic()
    if workers is not None and scheduler is not None:
        raise ClusterError(
            "workers counts processes of this machine; leave it out where a scheduler is named."
        )
    catalog = catalog if isinstance(catalog, Catalog) else load_catalog(catalog)
    store = location_of(catalog.store)
    resolved = _resolved(catalog, features)
    if not catalog.collections:
        raise CatalogError(f"{catalog.path}: collections is empty. Name a folder of audio files there.")
    command = command_line("extract")
    scanned = scan(catalog, only=collections or None)  # before a store is made: a wrong folder makes none
    with store.lock(command) as lock:
        index = Index.open_or_create(store, resolved[0].grid)
        index.lock = lock
        index.recover()
        todo = _planned(catalog, scanned, index, resolved, collections=collections, retry_failed=retry_failed)
        on_plan(todo)
        about = provenance(command, catalog=catalog.hash)
        run = _Run(index, todo, about, begun, on_progress)
        run.commit_row_changes()
        if len(todo.of(Action.EXTRACT)) or len(todo.parts):
            run.execute(store, workers=workers, scheduler=scheduler)
        index.compact(about)
        if run.damage:
            raise StoreDamagedError("\n".join([*run.damage, "Everything else is done."]))
        return run.report()


class _Run:
    """One extraction under way."""

    def __init__(
        self,
        index: Index,
        todo: Plan,
        provenance: dict[str, str],
        begun: float,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.index = index
        self.todo = todo
        self.provenance = provenance
        self.begun = begun
        self.on_progress = on_progress
        self.started = self.ended = begun
        extracts = todo.of(Action.EXTRACT)
        self.known = set(extracts.loc[extracts["in_index"].astype(bool), "track_id"])
        self.work = dict(
            zip(extracts["track_id"], estimated_rows(extracts, todo.features[0].grid), strict=True)
        )
        self.progress = Progress(
            songs_total=len(extracts) + int(todo.parts["tracks"].sum()),
            work_total=sum(self.work.values()) + WORK_OF_COMPUTING * int(todo.parts["tracks"].sum()),
        )
        self.songs = self.computed = 0
        self.failures = len(todo.of(Action.FAIL))
        self.seconds: Counter[str] = Counter()
        self.worker_peaks: Counter[int] = Counter()
        self.interrupted = False
        self.old = index.tracks().set_index("track_id", drop=False)
        self.damage: list[str] = []

    def commit_row_changes(self) -> None:
        """Commit what needs no job: moved, touched, gone, and files that cannot even be opened."""
        changes = self.todo.of(Action.MOVE, Action.UPDATE, Action.MARK_GONE)
        if len(changes):
            rows = [_changed_row(row, self.old) for row in changes.to_dict(orient="records")]
            removed = [name for name in changes["old_track_id"] if isinstance(name, str)]
            self.index.commit(updated=rows, removed=removed, provenance=self.provenance)
        failed = [
            self.kept(replace(_new_row(row), status="failed", stage="scan", reason=row["reason"]))
            for row in self.todo.of(Action.FAIL).to_dict(orient="records")
        ]
        if failed:
            self.index.commit(updated=failed, provenance=self.provenance)

    def jobs(self, store: Location, n_workers: int) -> "Iterator[Job]":
        """Jobs in the order in which they are to start: from the cache first, then files by size."""
        from pipeline.jobs import ComputeJob, ExtractJob

        by_name = {feature.name: feature for feature in self.todo.features}
        if len(self.todo.parts):
            arrays = self.index.arrays(["part", "fingerprint", "array"])
            stored = dict(
                zip(zip(arrays["part"], arrays["fingerprint"], strict=True), arrays["array"], strict=True)
            )
        for part, missing, n_tracks in self.todo.parts.itertuples(index=False):
            features = tuple(by_name[name] for name in missing)
            upstream = {f.upstream for f in features if f.upstream} - set(missing)
            sources = tuple(
                (by_name[name], stored[part, by_name[name].fingerprint]) for name in sorted(upstream)
            )
            yield ComputeJob(store, part, features, sources, int(n_tracks))
        extracts = self.todo.of(Action.EXTRACT)
        for batch in batches(extracts, self.todo.features[0].grid, workers=n_workers):
            rows = tuple(_new_row(row) for row in batch.to_dict(orient="records"))
            yield ExtractJob(store, rows, self.todo.features)

    def execute(self, store: Location, *, workers: int | None, scheduler: str | None) -> None:
        """Run the jobs and commit what they bring."""
        from pipeline.cluster import Interrupt, connected, finished_jobs, prepare_workers

        with Interrupt() as interrupt, connected(workers=workers, scheduler=scheduler) as (client, n_workers):
            jobs = list(self.jobs(store, n_workers))
            prepare_workers(client, self.todo.features)
            self.started = time.monotonic()
            self.progress.started = self.started
            for batch in finished_jobs(
                client,
                jobs,
                n_workers=n_workers,
                interrupt=interrupt,
                tick=lambda: self.on_progress(self.progress),
            ):
                self.commit(batch)
                self.on_progress(self.progress)
            self.interrupted = bool(interrupt.count)
            self.ended = time.monotonic()

    def commit(self, batch: "Sequence[JobResult | Killer]") -> None:
        """Commit a batch of results together."""
        from pipeline.cluster import Killer
        from pipeline.jobs import ComputeJob

        arrays: list[ArrayRow] = []
        tracks: list[TrackRow] = []
        for result in batch:
            if isinstance(result, Killer):
                if isinstance(result.job, ComputeJob):
                    self.damage.append(
                        f"a worker died while computing {', '.join(f.name for f in result.job.features)} "
                        f"for part {result.job.part}. Give workers more memory (fewer --workers) and run again."
                    )
                    continue
                tracks += [
                    replace(
                        track,
                        status="failed",
                        stage="worker",
                        reason="the worker process died while decoding it",
                    )
                    for track in result.job.tracks
                ]
                continue
            if result.damage:
                self.damage.append(result.damage)
                continue
            arrays += result.arrays
            tracks += result.tracks
            self.seconds.update(result.seconds)
            self.worker_peaks[result.worker_pid] = max(self.worker_peaks[result.worker_pid], result.peak_rss)
            if not result.tracks:
                n_tracks = int(self.todo.parts.set_index("part").loc[result.arrays[0].part, "tracks"])
                self.computed += n_tracks
                self.progress.songs_done += n_tracks
                self.progress.work_done += WORK_OF_COMPUTING * n_tracks
        tracks = [self.kept(track) for track in tracks]
        self.index.commit(
            arrays=arrays,
            added=[track for track in tracks if track.track_id not in self.known],
            updated=[track for track in tracks if track.track_id in self.known],
            provenance=self.provenance,
        )
        for track in tracks:
            self.progress.songs_done += 1
            self.progress.work_done += self.work[track.track_id]
            if track.status == "ok":
                self.songs += 1
                self.progress.audio_s += track.duration_s or 0.0
            else:
                self.failures += 1
        self.progress.failures = self.failures

    def kept(self, track: TrackRow) -> TrackRow:
        """Return a track's row with what stays of the old one: added labels, and a failed one's features."""
        if track.track_id not in self.old.index:
            return track
        before = _known_row(self.old, track.track_id)
        track = replace(track, added_labels=before.added_labels)
        if track.status != "failed" or before.part is None:
            return track
        if track.stage == "scan":  # nothing is known of the file, so the row still says what was stored
            return replace(before, status="failed", stage=track.stage, reason=track.reason)
        return replace(
            before,
            status="failed",
            stage=track.stage,
            reason=track.reason,
            size=track.size,
            mtime_ns=track.mtime_ns,
            uri=track.uri,
            labels=track.labels,
        )

    def report(self) -> ExtractReport:
        """Return what was done."""
        return ExtractReport(
            songs=self.songs,
            computed=self.computed,
            failures=self.failures,
            moved=len(self.todo.of(Action.MOVE)),
            updated=len(self.todo.of(Action.UPDATE)),
            gone=len(self.todo.of(Action.MARK_GONE)),
            audio_s=self.progress.audio_s,
            elapsed_s=time.monotonic() - self.begun,
            startup_s=self.started - self.begun,
            steady_s=self.ended - self.started,
            stage_s=dict(self.seconds),
            worker_peak_bytes=max(self.worker_peaks.values(), default=0),
            peak_bytes_by_worker=dict(self.worker_peaks),
            interrupted=self.interrupted,
        )


def _new_row(planned: dict[str, Any]) -> TrackRow:
    """Row of a track as the plan knows it."""
    labels = planned["labels"]
    return TrackRow(
        track_id=str(planned["track_id"]),
        collection=str(planned["collection"]),
        uri=str(planned["uri"]),
        size=int(planned["size"]),
        mtime_ns=int(planned["mtime_ns"]),
        status="planned",
        labels=labels if isinstance(labels, str) else None,
    )


def _changed_row(planned: dict[str, Any], old: pd.DataFrame) -> TrackRow:
    """The old row with what has changed about it."""
    before = planned["old_track_id"] if isinstance(planned["old_track_id"], str) else planned["track_id"]
    known = _known_row(old, before)
    if planned["action"] == Action.MARK_GONE:
        return replace(known, status="gone")
    new = _new_row(planned)
    names = ("track_id", "collection", "uri", "size", "mtime_ns", "labels")
    changes = {name: getattr(new, name) for name in names}
    return replace(known, status="ok", stage=None, reason=None, **changes)


def _known_row(old: pd.DataFrame, track_id: str) -> TrackRow:
    """Return a track's row as the index has it."""
    values: dict[str, Any] = old.loc[track_id].to_dict()
    known: dict[str, Any] = {name: None if pd.isna(value) else value for name, value in values.items()}
    return TrackRow(**known)
