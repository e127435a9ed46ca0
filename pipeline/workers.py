"""The workers of a cluster: which of them may be used, as they come and go."""

import asyncio
import faulthandler
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import cloudpickle
from distributed import Client, get_worker

import pipeline.fitness
from features.errors import MirstoreError
from pipeline.definitions import Feature
from pipeline.errors import ClusterError, StoreAccessError
from pipeline.fitness import unfitness
from pipeline.jobs import ComputeJob, ExtractJob, JobResult, prepare, run
from pipeline.store.location import Location

LOOK_EVERY_S = 1.0
ANSWER_S = 30.0
# How long a run goes on waiting when it has no worker: a machine that restarts takes about so long.
PATIENCE_S = 60.0
_GRACE_S = 2.0


class Workers:
    """Workers of a client's cluster that are fit for a run.

    Each is asked as it appears, a restarted one too, and loads what the features need before it is used.

    Parameters
    ----------
    client
        Connected client.
    features
        What workers are to load.
    store
        What they are to reach.
    needs
        What `pipeline.fitness.unfitness` is to check; None where the workers are this process's own.
    on_refused
        Called with address and reason of each worker that is not used.
    """

    def __init__(
        self,
        client: Client,
        features: Sequence[Feature],
        store: Location,
        *,
        needs: Mapping[str, Any] | None = None,
        on_refused: Callable[[str, str], None] = lambda _address, _reason: None,
    ) -> None:
        self._client = client
        self._features = tuple(features)
        self._store = store
        self._needs = dict(needs) if needs is not None else None
        self._on_refused = on_refused
        self._asked: dict[str, Future[str | MirstoreError | None]] = {}
        self._unloadable: MirstoreError | None = None
        self._dropped: set[str] = set()
        self._last_look = self._last_usable = time.monotonic()
        self.alive: frozenset[str] = frozenset()
        self.usable: tuple[str, ...] = ()
        self.refused: dict[str, str] = {}
        self._untold: list[str] = []
        # By value: a worker on which mirstore cannot be imported is to say so, not to fail at reading the question.
        cloudpickle.register_pickle_by_value(pipeline.fitness)

    def gather(self) -> None:
        """Ask all there are; return when each has answered, or some are fit and the others take their time.

        Raises
        ------
        ClusterError
            If none is fit, or the scheduler itself is not: it unpacks what it hands on.
        MirstoreError
            What none can load, such as a damaged weights file.
        """
        if self._needs is not None:
            self._check_scheduler(self._needs)
        patience = time.monotonic() + ANSWER_S
        self.look(now=True)
        while self._asked and not (self.usable and time.monotonic() > patience):
            asyncio.run_coroutine_threadsafe(self._an_answer(), self._loop).result()
            self.look(now=True)
        if not self.usable:
            if self._unloadable is not None:
                raise self._unloadable
            reasons = "; ".join(f"{address}: {reason}" for address, reason in list(self.refused.items())[:3])
            if len(self.refused) > 3:
                reasons += f"; and {len(self.refused) - 3} more"
            raise ClusterError(f"no worker can be used ({reasons}). Mend them and run again.")

    def _check_scheduler(self, needs: dict[str, Any]) -> None:
        python = self._client.run_on_scheduler(platform.python_version_tuple)
        unfit = _other_python(python)
        if unfit is None:
            own = {name: need for name, need in needs.items() if name not in ("store", "lock", "files")}
            unfit = self._client.run_on_scheduler(unfitness, own)
        if unfit is not None:
            raise ClusterError(
                f"the Dask scheduler cannot be used: {unfit}. Start it in the environment of its workers."
            )

    def look(self, *, now: bool = False) -> None:
        """Take note of workers that came, went or answered, once a second.

        Parameters
        ----------
        now
            Whatever was looked at a moment ago.

        Raises
        ------
        ClusterError
            If the scheduler has gone, or there was no fit worker for `PATIENCE_S`.
        """
        if not now and time.monotonic() < self._last_look + LOOK_EVERY_S:
            return
        self._last_look = time.monotonic()
        try:
            self.alive = frozenset(self._client.nthreads())
        except (OSError, TimeoutError) as error:
            raise scheduler_gone() from error
        self._dropped &= self.alive
        for address in self.alive - set(self.usable) - set(self.refused) - set(self._asked) - self._dropped:
            self._asked[address] = asyncio.run_coroutine_threadsafe(self._answer(address), self._loop)
        usable = [address for address in self.usable if address in self.alive]
        for address in [address for address, answer in self._asked.items() if answer.done()]:
            answer = self._asked.pop(address).result()
            if address not in self.alive:
                continue
            if answer is None:
                usable.append(address)
                continue
            # What concerns one machine is told with its address.
            if isinstance(answer, MirstoreError) and not isinstance(answer, StoreAccessError):
                self._unloadable = answer
            self.refused[address] = str(answer)
            self._untold.append(address)
        self.usable = tuple(usable)
        if usable:
            self._last_usable = time.monotonic()
            while self._untold:  # where none is fit, the error tells
                self._on_refused(address := self._untold.pop(0), self.refused[address])
        elif time.monotonic() > self._last_usable + PATIENCE_S and not self._asked:
            raise ClusterError(
                f"for {PATIENCE_S:.0f} s there was no worker to use; what is finished is committed. "
                "Start workers and run again to go on."
            )

    def drop(self, address: str) -> None:
        """Give no more work to a worker that is about to end."""
        self._dropped.add(address)
        self.usable = tuple(other for other in self.usable if other != address)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._client.loop.asyncio_loop  # type: ignore[union-attr]
        return loop

    async def _an_answer(self) -> None:
        waiting = [asyncio.wrap_future(answer) for answer in self._asked.values()]
        await asyncio.wait(waiting, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)

    async def _answer(self, address: str) -> str | MirstoreError | None:
        """Ask one worker: None if it is fit, else why not."""
        if self._needs is not None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    unfit = await self._unfitness(address)
            except TimeoutError:
                return f"it did not answer within {ANSWER_S:.0f} s"
            if unfit is not None:
                return unfit
        error = await self._run(address, prepare, self._features, self._store)
        if error is None or isinstance(error, MirstoreError):
            return error
        return f"it cannot load what is needed ({_words(error)})"

    async def _unfitness(self, address: str) -> str | None:
        # First by a function of the standard library: code does not travel between versions of Python.
        python = await self._run(address, platform.python_version_tuple)
        if isinstance(python, Exception):
            return f"it cannot be asked ({_words(python)})"
        if (unfit := _other_python(python)) is not None:
            return unfit
        unfit = await self._run(address, unfitness, self._needs)
        return f"it cannot be asked ({_words(unfit)})" if isinstance(unfit, Exception) else unfit

    async def _run(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a function on one worker, or the exception."""
        try:
            answers = await self._client.run(function, *arguments, workers=[address], on_error="return")
        except OSError as error:
            return error
        return answers[address]


def _other_python(version: tuple[str, str, str]) -> str | None:
    """Return what is wrong with a version of Python: neither code nor pickles travel between minor ones."""
    if version[:2] == platform.python_version_tuple()[:2]:
        return None
    return f"it has Python {'.'.join(version)}, this run has {platform.python_version()}"


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def scheduler_gone() -> ClusterError:
    """Return the error of a run whose scheduler no longer answers."""
    return ClusterError(
        "the Dask scheduler has gone; what is finished is committed. Start it and run again to go on."
    )


def run_within(job: ExtractJob | ComputeJob, limit_s: float, topic: str) -> JobResult:
    """Run one job in a Dask worker, and end the worker if it takes too long.

    Parameters
    ----------
    job
        What to do.
    limit_s
        Seconds it may take. Then the worker says so as an event of `topic`, and dies.
    topic
        Of the run's own.
    """
    worker = get_worker()
    key = worker.get_current_task()
    with _time_limit(limit_s, lambda: worker.log_event(topic, {"key": key, "worker": worker.address})):
        return run(job)


@contextmanager
def _time_limit(seconds: float, on_late: Callable[[], None]) -> Iterator[None]:
    """End this process if the block takes longer.

    Native code that never returns may hold Python's lock; then `on_late` is not called, but the process
    ends all the same, by a thread that needs no lock.
    """
    timer = threading.Timer(seconds, on_late)
    timer.daemon = True
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds + _GRACE_S, exit=True, file=nowhere)
        timer.start()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            timer.cancel()
