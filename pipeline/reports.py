"""What a run says of itself: while it goes on, and in the end."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """How far a run is; handed to the `on_progress` callback a few times a second."""

    songs_total: int = 0
    songs_done: int = 0
    failures: int = 0
    audio_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    work_total: float = 0.0
    work_done: float = 0.0
    interrupted: bool = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since work began."""
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to the end; None while there is nothing to estimate from."""
        if not self.work_done:
            return None
        return self.elapsed_s * max(0.0, self.work_total / self.work_done - 1.0)


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What a run did.

    Parameters
    ----------
    songs, computed
        Tracks decoded, and given features from the cache.
    failures, unopened
        Files that failed, and how many of them could not even be opened.
    moved, updated
        Tracks of which only the name changed, or only labels, folder or modification time.
    gone, back
        Tracks that their collection no longer has, and that it has again.
    gone_failed, back_failed
        The same of failed files, which have no features; such a one is not tried again.
    audio_s
        Seconds of audio decoded.
    elapsed_s, startup_s, steady_s
        The whole run; up to the first job; and from the first job to the last commit.
    stage_s
        Seconds of the workers by stage, added up.
    worker_peak_bytes
        Largest resident size of any worker.
    peak_bytes_by_worker
        The same of each worker, by process id.
    interrupted
        Whether Ctrl-C ended it early.
    refused_workers
        Why a worker of the scheduler was not used, by address.
    emptied
        Number of tracks with features by collection, of collections in which nothing was found any more.
    """

    songs: int
    computed: int
    failures: int
    unopened: int
    moved: int
    updated: int
    gone: int
    gone_failed: int
    back: int
    back_failed: int
    audio_s: float
    elapsed_s: float
    startup_s: float
    steady_s: float
    stage_s: dict[str, float]
    worker_peak_bytes: int
    peak_bytes_by_worker: dict[int, int]
    interrupted: bool
    refused_workers: dict[str, str]
    emptied: dict[str, int]
