"""One extraction under way: jobs out, results in, commits of what they brought."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from features.errors import MirstoreError
from pipeline.planning import UNREAD, Action, Plan, batches, estimated_rows
from pipeline.reports import ExtractReport, Progress
from pipeline.store.folder import LOCK_FILE
from pipeline.store.index import Index
from pipeline.store.location import Location, is_folder
from pipeline.store.records import ArrayRow, TrackRow, track_rows

if TYPE_CHECKING:
    from pipeline.cluster import Interrupt, Job, Killer
    from pipeline.jobs import JobResult

# Guess of the work, in chunks of decoding, that a track of the cache is: only the time left depends on it.
WORK_OF_COMPUTING = 3.0
# Seconds between commits for each second that one takes. A commit that replaces rows of a large index writes
# all of it anew: one for each job would fill the disk with superseded tables.
SECONDS_BETWEEN = 10.0


class Run:
    """One extraction under way."""

    def __init__(
        self,
        index: Index,
        todo: Plan,
        provenance: dict[str, str],
        begun: float,
        on_progress: Callable[[Progress], None],
        on_refused: Callable[[str, str], None],
    ) -> None:
        self.index = index
        self.todo = todo
        self.provenance = provenance
        self.begun = begun
        self.on_progress = on_progress
        self.on_refused = on_refused
        self.refused_workers: dict[str, str] = {}
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
        self.had_features = set(extracts.loc[extracts["has_features"].astype(bool), "track_id"])
        self.songs = self.computed = self.failures = 0
        self.seconds: Counter[str] = Counter()
        self.worker_peaks: Counter[int] = Counter()
        self.interrupted = False
        self.old = index.tracks().set_index("track_id", drop=False)
        self.damage: list[str] = []
        self.finished_arrays: list[ArrayRow] = []
        self.finished_tracks: list[TrackRow] = []
        self.next_commit = -math.inf  # as `time.monotonic` counts

    def commit_row_changes(self) -> None:
        """Commit what needs no job: moved, touched, gone, and files that cannot even be opened."""
        changes = self.todo.of(Action.MOVE, Action.UPDATE, Action.BACK, Action.BACK_FAILED, Action.MARK_GONE)
        if len(changes):
            before = changes["old_track_id"].where(changes["old_track_id"].notna(), changes["track_id"])
            rows = [
                _changed_row(row, known)
                for row, known in zip(
                    changes.to_dict(orient="records"), track_rows(self.old.loc[list(before)]), strict=True
                )
            ]
            removed = [name for name in changes["old_track_id"] if isinstance(name, str)]
            self.index.commit(
                updated=rows, removed=removed, provenance=self.provenance, counts=self.row_changes()
            )
        failed = self.kept(
            [
                replace(_new_row(row), status="failed", stage="scan", reason=row["reason"])
                for row in self.todo.of(Action.FAIL).to_dict(orient="records")
            ]
        )
        if failed:
            self.index.commit(updated=failed, provenance=self.provenance, counts={"failed": len(failed)})

    def row_changes(self) -> dict[str, int]:
        """What needs no job, counted as its commit tells it."""
        back, back_failed = self.todo.count(Action.BACK, Action.BACK_FAILED)
        gone, gone_failed = self.todo.count(Action.MARK_GONE)
        return {
            "moved": len(self.todo.of(Action.MOVE)),
            "back": back,
            "failed_files_back": back_failed,
            "updated": len(self.todo.of(Action.UPDATE)),
            "marked_gone": gone,
            "failed_files_marked_gone": gone_failed,
        }

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

    def needs(self, store: Location) -> dict[str, Any]:
        """Return what workers elsewhere must have and see: this code, the store, a file of each collection."""
        from pipeline.fitness import own_needs

        needs = dict(own_needs())
        if is_folder(store):
            needs |= {"store": store.url, "lock": store.read(LOCK_FILE)}
        firsts = self.todo.of(Action.EXTRACT).drop_duplicates("collection")["uri"]
        return needs | {"files": [uri for uri in firsts if os.access(uri, os.R_OK)]}

    def refuse(self, address: str, reason: str) -> None:
        """Take note of a worker that is not used."""
        self.refused_workers[address] = reason
        self.on_refused(address, reason)

    def execute(
        self, store: Location, *, workers: int | None, scheduler: str | None, job_timeout_s: float
    ) -> None:
        """Run the jobs and commit what they bring."""
        from pipeline.cluster import Interrupt, connected, finished_jobs
        from pipeline.workers import Workers

        with Interrupt() as interrupt, connected(workers=workers, scheduler=scheduler) as client:
            needs = None if scheduler is None else self.needs(store)
            fleet = Workers(client, self.todo.features, store, needs=needs, on_refused=self.refuse)
            fleet.gather()
            jobs = list(self.jobs(store, len(fleet.usable)))
            self.started = time.monotonic()
            self.progress.started = self.started
            try:
                for batch in finished_jobs(
                    client,
                    jobs,
                    workers=fleet,
                    interrupt=interrupt,
                    time_limit_s=job_timeout_s,
                    tick=lambda: self.tick(interrupt),
                ):
                    self.take(batch)
                    self.tick(interrupt)
            except BaseException:
                with suppress(MirstoreError):  # the first error says more
                    self.commit()
                raise
            self.commit()
            self.tell(interrupt)
            self.interrupted = bool(interrupt.count)
            self.ended = time.monotonic()

    def tell(self, interrupt: "Interrupt") -> None:
        """Tell how far it is, and whether it was asked to stop."""
        self.progress.interrupted = bool(interrupt.count)
        self.on_progress(self.progress)

    def tick(self, interrupt: "Interrupt") -> None:
        """Commit if it is time, and tell how far it is."""
        if (self.finished_arrays or self.finished_tracks) and time.monotonic() >= self.next_commit:
            self.commit()
        self.tell(interrupt)

    def take(self, batch: "Sequence[JobResult | Killer]") -> None:
        """Take note of what jobs brought, to be committed with the next."""
        from pipeline.cluster import Killer

        tracks: list[TrackRow] = []
        for result in batch:
            if isinstance(result, Killer):
                tracks += self.convicted(result)
            elif result.damage:
                self.damage.append(result.damage)
            else:
                self.finished_arrays += result.arrays
                tracks += result.tracks
                self.measure(result)
        self.finished_tracks += self.kept(tracks)
        for track in tracks:
            self.progress.songs_done += 1
            self.progress.work_done += self.work[track.track_id]
            if track.status == "ok":
                self.songs += 1
                self.progress.audio_s += track.duration_s or 0.0
            else:
                self.failures += 1
        self.progress.failures = self.failures

    def convicted(self, killer: "Killer") -> list[TrackRow]:
        """Return the failed rows of the track that took a worker down; of a part it is damage."""
        from pipeline.jobs import ComputeJob

        if isinstance(killer.job, ComputeJob):
            names = ", ".join(feature.name for feature in killer.job.features)
            what = f"computing {names} for part {killer.job.part}"
            self.damage.append(
                f"a worker died while {what}. Give workers more memory (fewer --workers) and run again."
                if killer.late_s is None
                else f"{what} took longer than {killer.late_s:g} s. Raise --job-timeout and run again."
            )
            return []
        reason = (
            "the worker process died while decoding it"
            if killer.late_s is None
            else f"took longer than {killer.late_s:g} s"
        )
        return [replace(track, status="failed", stage="worker", reason=reason) for track in killer.job.tracks]

    def measure(self, result: "JobResult") -> None:
        """Add up what a job took; one from the cache also counts the tracks of its part."""
        self.seconds.update(result.seconds)
        self.worker_peaks[result.worker_pid] = max(self.worker_peaks[result.worker_pid], result.peak_rss)
        if not result.tracks:
            n_tracks = int(self.todo.parts.set_index("part").loc[result.arrays[0].part, "tracks"])
            self.computed += n_tracks
            self.progress.songs_done += n_tracks
            self.progress.work_done += WORK_OF_COMPUTING * n_tracks

    def commit(self) -> None:
        """Make what jobs brought since the last commit visible."""
        # Taken first: what a refused commit may have left half done is never committed again.
        arrays, tracks = self.finished_arrays, self.finished_tracks
        self.finished_arrays, self.finished_tracks = [], []
        begun = time.monotonic()
        if arrays or tracks:
            good = [track.track_id for track in tracks if track.status == "ok"]
            changed = sum(track_id in self.had_features for track_id in good)
            self.index.commit(
                arrays=arrays,
                added=[track for track in tracks if track.track_id not in self.known],
                updated=[track for track in tracks if track.track_id in self.known],
                provenance=self.provenance,
                counts={
                    "added": len(good) - changed,
                    "changed": changed,
                    "failed": len(tracks) - len(good),
                },
            )
        ended = time.monotonic()
        self.next_commit = ended + SECONDS_BETWEEN * (ended - begun)

    def kept(self, tracks: Sequence[TrackRow]) -> list[TrackRow]:
        """Return rows with what stays of the old ones: added labels, and a failed track's features."""
        known = self.old.index.intersection(pd.Index([track.track_id for track in tracks], dtype=object))
        before = {row.track_id: row for row in track_rows(self.old.loc[known])}
        return [
            _kept(track, before[track.track_id]) if track.track_id in before else track for track in tracks
        ]

    def report(self) -> ExtractReport:
        """Return what was done."""
        counts = self.row_changes()
        unopened = len(self.todo.of(Action.FAIL))
        return ExtractReport(
            songs=self.songs,
            computed=self.computed,
            failures=self.failures + unopened,
            unopened=unopened,
            moved=counts["moved"],
            updated=counts["updated"],
            gone=counts["marked_gone"],
            gone_failed=counts["failed_files_marked_gone"],
            back=counts["back"],
            back_failed=counts["failed_files_back"],
            audio_s=self.progress.audio_s,
            elapsed_s=time.monotonic() - self.begun,
            startup_s=self.started - self.begun,
            steady_s=self.ended - self.started,
            stage_s=dict(self.seconds),
            worker_peak_bytes=max(self.worker_peaks.values(), default=0),
            peak_bytes_by_worker=dict(self.worker_peaks),
            interrupted=self.interrupted,
            refused_workers=dict(self.refused_workers),
            emptied=dict(self.todo.emptied),
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


def _kept(track: TrackRow, before: TrackRow) -> TrackRow:
    track = replace(track, added_labels=before.added_labels)
    if track.status != "failed" or before.part is None:
        return track
    if track.stage in UNREAD:  # nothing is known of the file, so the row still says what was stored
        still = replace(before, status="failed", stage=track.stage, reason=track.reason)
        # But for a file that had failed otherwise: when it can be read again, it must not pass for what was stored.
        return still if before.stage is None or before.stage in UNREAD else replace(still, size=0)
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


def _changed_row(planned: dict[str, Any], known: TrackRow) -> TrackRow:
    """The old row with what has changed about it."""
    if planned["action"] == Action.MARK_GONE:
        return replace(known, status="gone")
    failed = planned["action"] == Action.BACK_FAILED
    if failed and known.stage in UNREAD:  # of the file itself nothing is known, as before
        return replace(known, status="failed")
    new = _new_row(planned)
    names = ("track_id", "collection", "uri", "size", "mtime_ns", "labels")
    changes = {name: getattr(new, name) for name in names}
    if failed:
        return replace(known, status="failed", **changes)
    return replace(known, status="ok", stage=None, reason=None, **changes)
