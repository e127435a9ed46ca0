"""Dask: the workers, a sliding window of jobs over them, and the hunt for files that kill a worker."""

import contextlib
import logging
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import queue
import signal
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import dask
from distributed import Client, Future, LocalCluster
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from pipeline.errors import ClusterError, MissingGuardError
from pipeline.jobs import ComputeJob, ExtractJob, JobResult
from pipeline.workers import Workers, run_within, scheduler_gone

Job = ExtractJob | ComputeJob
T = TypeVar("T")
TICK_S = 0.25
# How often a job may lose every worker it could run on before it is a suspect: machines fail by themselves too.
LOSSES_ALLOWED = 1

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
def connected(*, workers: int | None, scheduler: str | None) -> Iterator[Client]:
    """Client of a local cluster of processes, or of a running scheduler.

    Parameters
    ----------
    workers
        Worker processes to start; None is one a core. Not used with `scheduler`.
    scheduler
        Address of a running Dask scheduler, such as ``tcp://10.0.0.5:8786``.

    Raises
    ------
    ClusterError
        If the scheduler does not answer, has no workers or cannot read jobs.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        if scheduler is None:
            n_workers = workers or available_cores()
            with _deaf_to_interrupts(), _told_of_a_missing_guard():
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
            if not client.nthreads():
                raise ClusterError(
                    f"the scheduler at {scheduler} has no workers. Start some with `dask worker {scheduler}`."
                )
        yield client


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
def _told_of_a_missing_guard() -> Iterator[None]:
    """Say why workers could not start: each had imported a script that starts workers."""
    try:
        yield
    except RuntimeError:
        raise MissingGuardError from None


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
    """Ctrl-C or SIGTERM once: finish the jobs in flight. Twice: abandon them."""

    count: int = 0
    _before: dict[int, Any] = field(default_factory=dict, repr=False)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __enter__(self) -> "Interrupt":
        with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Killer:
    """A job of one track, or of one part, that took its worker process down, run alone.

    `late_s` is the time limit it exceeded; None if the process died otherwise.
    """

    job: Job
    late_s: float | None = None


@dataclass(slots=True)
class _Flight:
    """A job that was handed to Dask."""

    job: Job
    future: "Future[JobResult]"
    workers: frozenset[str]
    losses: int


def finished_jobs(
    client: Client,
    jobs: Iterable[Job],
    *,
    workers: Workers,
    interrupt: Interrupt,
    time_limit_s: float,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[list[JobResult | Killer]]:
    """Run jobs in a window of twice the workers and yield what has ended, in batches.

    A job whose worker died, or that takes too long, is split into its tracks, which run again one at a
    time with nothing else in flight, so that a second death convicts.

    Parameters
    ----------
    client
        Connected client.
    jobs
        In the order in which they are to start.
    workers
        Those that may be used.
    interrupt
        Its count is looked at between jobs.
    time_limit_s
        Seconds a job may take.
    tick
        Called some times a second, for progress.

    Raises
    ------
    StoreError
        If a job could not write; nothing new is started then.
    ClusterError
        If the scheduler has gone, or all workers for a while.
    """
    waiting = deque((job, 0) for job in jobs)
    suspects: deque[Job] = deque()
    done: queue.Queue[Future[JobResult]] = queue.Queue()
    late: queue.Queue[dict[str, str]] = queue.Queue()
    in_flight: dict[Any, _Flight] = {}
    alone = False
    topic = f"mirstore-{uuid.uuid4()}"
    client.subscribe_topic(topic, lambda event: late.put(event[1]))

    def submit(job: Job, losses: int = 0) -> None:
        future = client.submit(
            run_within,
            job,
            time_limit_s,
            topic,
            pure=False,
            workers=workers.usable,
            allow_other_workers=False,
        )
        in_flight[future.key] = _Flight(job, future, frozenset(workers.usable), losses)
        future.add_done_callback(done.put)

    def fallen(job: Job, late_s: float | None = None) -> list[JobResult | Killer]:
        if alone:
            return [Killer(job, late_s)]
        suspects.extend(job.split() if isinstance(job, ExtractJob) else [job])
        return []

    try:
        while waiting or suspects or in_flight:
            if interrupt.count > 1 or (interrupt.count and not in_flight):
                break
            workers.look()
            if not interrupt.count:
                while waiting and len(in_flight) < 2 * len(workers.usable):
                    submit(*waiting.popleft())
                if suspects and workers.usable and not waiting and not in_flight:
                    alone = True
                    submit(suspects.popleft())
            tick()
            batch: list[JobResult | Killer] = []
            for future in _ended(done):
                flight = in_flight.pop(future.key, None)
                if flight is None:
                    continue
                try:
                    batch.append(future.result())
                except KilledWorker:
                    workers.look(now=True)  # so that nothing is handed to the dead
                    batch += fallen(flight.job)
                except CancelledError as error:
                    raise scheduler_gone() from error
            for event in _queued(late):
                workers.drop(event["worker"])
                if (flight := in_flight.pop(event["key"], None)) is not None:
                    flight.future.cancel(force=True)
                    batch += fallen(flight.job, time_limit_s)
            for key in [key for key, flight in in_flight.items() if not flight.workers & workers.alive]:
                # Restarted workers have other addresses, so Dask would wait for the old ones for ever.
                flight = in_flight.pop(key)
                flight.future.cancel(force=True)
                if flight.losses < LOSSES_ALLOWED:
                    waiting.appendleft((flight.job, flight.losses + 1))
                else:
                    batch += fallen(flight.job)
            if batch:
                yield batch
    finally:
        with contextlib.suppress(CommClosedError):
            client.unsubscribe_topic(topic)
        for flight in in_flight.values():
            flight.future.cancel(force=True)


def _ended(done: "queue.Queue[Future[JobResult]]") -> list[Future[JobResult]]:
    """Futures that have ended, after waiting a moment for the first."""
    try:
        return [done.get(timeout=TICK_S), *_queued(done)]
    except queue.Empty:
        return []


def _queued(source: "queue.Queue[T]") -> list[T]:
    """What a queue holds now."""
    held = []
    with contextlib.suppress(queue.Empty):
        while True:
            held.append(source.get_nowait())
    return held
