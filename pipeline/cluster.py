"""Dask: the workers, a sliding window of jobs over them, and the hunt for files that kill a worker."""

import contextlib
import logging
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import dask
from distributed import Client, Future, LocalCluster
from distributed.scheduler import KilledWorker

from pipeline.definitions import Feature
from pipeline.errors import ClusterError
from pipeline.jobs import ComputeJob, ExtractJob, JobResult, prepare, run

Job = ExtractJob | ComputeJob
TICK_S = 0.25

# One thread of arithmetic a worker: a worker is a core. The allocator keeps what a song took for
# the next song; Dask's own setting gives it back after each, and the page faults cost a fifth of the run.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_SETTINGS = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.daemon": True,
    "distributed.admin.tick.limit": "30s",
    # The statistical profiler interrupts a worker a hundred times a second, for a dashboard nobody opens.
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": "60s",
}


def available_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connected(*, workers: int | None, scheduler: str | None) -> Iterator[tuple[Client, int]]:
    """Client of a local cluster of processes, or of a running scheduler, and its number of workers.

    Parameters
    ----------
    workers
        Worker processes to start; None is one a core. Not used with `scheduler`.
    scheduler
        Address of a running Dask scheduler, such as ``tcp://10.0.0.5:8786``.

    Raises
    ------
    ClusterError
        If the scheduler does not answer or has no workers.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        if scheduler is None:
            n_workers = workers or available_cores()
            with _deaf_to_interrupts():
                cluster = LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    # No dashboard; its port is named because the default, 8787, is one for all runs.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=logging.CRITICAL,
                )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
            stack.callback(_end_workers, client, cluster)
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout="5s"))
            except (OSError, ValueError, TimeoutError) as error:
                raise ClusterError(
                    f"no Dask scheduler answers at {scheduler}. Start one with `dask scheduler`, "
                    "or leave --scheduler out to use this machine."
                ) from error
            n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
            if not n_workers:
                raise ClusterError(
                    f"the scheduler at {scheduler} has no workers. Start some with `dask worker {scheduler}`."
                )
        yield client, n_workers


def _end_workers(client: Client, cluster: LocalCluster) -> None:
    """End the worker processes at once: what they wrote is on disk, and a polite close takes a second."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
    client.run(_release_locks, on_error="ignore")
    for nanny in cluster.workers.values():
        if nanny.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def _release_locks() -> None:
    """Give back named semaphores, as a process that exits would; else Python reports them as leaked."""
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have threads and processes started in this block never see Ctrl-C, which a terminal sends to all.

    The signal is blocked, not ignored: one that comes meanwhile reaches this process afterwards, and
    workers that Dask starts anew later inherit the block too.
    """
    # Started first, because in starting it unblocks the signal in whatever thread asks for it.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class Interrupt:
    """Ctrl-C once: finish the jobs in flight. Twice: abandon them."""

    count: int = 0
    _before: Any = field(default=None, repr=False)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __enter__(self) -> "Interrupt":
        with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


@dataclass(frozen=True, slots=True)
class Killer:
    """A job of one track, or of one part, that took its worker process down, run alone."""

    job: Job


def finished_jobs(
    client: Client,
    jobs: Iterable[Job],
    *,
    n_workers: int,
    interrupt: Interrupt,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[list[JobResult | Killer]]:
    """Run jobs in a window of twice the workers and yield what has ended, in batches.

    A job whose worker died is split into its tracks, which run again one at a time with nothing
    else in flight, so that a second death convicts.

    Parameters
    ----------
    client
        Connected client.
    jobs
        In the order in which they are to start.
    n_workers
        Number of workers.
    interrupt
        Its count is looked at between jobs.
    tick
        Called some times a second, for progress.

    Raises
    ------
    StoreError
        If a job could not write; nothing new is started then.
    """
    waiting = deque(jobs)
    suspects: deque[Job] = deque()
    done: queue.Queue[Future[JobResult]] = queue.Queue()
    in_flight: dict[Any, tuple[Future[JobResult], Job]] = {}

    def submit(job: Job) -> None:
        future = client.submit(run, job, pure=False)
        in_flight[future.key] = (future, job)
        future.add_done_callback(done.put)

    alone = False
    try:
        while waiting or suspects or in_flight:
            if interrupt.count > 1:
                break
            if not interrupt.count:
                while waiting and len(in_flight) < 2 * n_workers:
                    submit(waiting.popleft())
                if not waiting and not in_flight and suspects:
                    alone = True
                    submit(suspects.popleft())
            elif not in_flight:
                break
            tick()
            batch: list[JobResult | Killer] = []
            for future in _ended(done):
                _, job = in_flight.pop(future.key)
                try:
                    batch.append(future.result())
                except KilledWorker:
                    if alone:
                        batch.append(Killer(job))
                    else:
                        suspects.extend(job.split() if isinstance(job, ExtractJob) else [job])
            if batch:
                yield batch
    finally:
        for future, _ in in_flight.values():
            future.cancel(force=True)


def _ended(done: "queue.Queue[Future[JobResult]]") -> list[Future[JobResult]]:
    """Futures that have ended, after waiting a moment for the first."""
    ended = []
    with contextlib.suppress(queue.Empty):
        ended.append(done.get(timeout=TICK_S))
        while True:
            ended.append(done.get_nowait())
    return ended


def prepare_workers(client: Client, features: Sequence[Feature]) -> None:
    """Have every worker import and load what the features need, before the first file is opened.

    Raises
    ------
    MirstoreError
        What a worker cannot load, such as a damaged weights file.
    """
    client.run(prepare, tuple(features))
