"""Batches made by a thread, one ahead of who takes them.

Reading, decompressing and checking rows all let other Python threads run, so the thread works while
the one who takes the batches does.
"""

import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Self

BATCHES_HELD = 3  # one being made, one waiting, one in the hands of who took it


class ReadAhead(Iterator[Any]):
    """What an iterator gives, worked out by a thread ahead of time.

    Parameters
    ----------
    source
        Used by the thread alone. What it raises is raised here, after what came before it.

    Notes
    -----
    The thread ends when the source does, with `close`, or when this is no longer used.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._made: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._room = threading.Semaphore(BATCHES_HELD - 1)
        stopped = threading.Event()
        # The thread must not know this object: else it would never be out of use.
        thread = threading.Thread(
            target=_make,
            args=(source, self._made, self._room, stopped),
            name="mirstore read-ahead",
            daemon=True,
        )
        self._over = False
        self.close = weakref.finalize(self, _stop, thread, self._room, stopped)
        thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._over or not self.close.alive:
            raise StopIteration
        item, error = self._made.get()
        if error is not None:
            self._over = True
            self.close()
            try:
                raise error
            finally:
                del error  # it holds this frame, which would hold it
        self._room.release()
        return item


def _make(
    source: Iterator[Any],
    made: "SimpleQueue[tuple[Any, BaseException | None]]",
    room: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    try:
        while True:
            room.acquire()
            if stopped.is_set():
                return
            made.put((next(source), None))
    except BaseException as error:  # handed on, StopIteration too
        made.put((None, error))


def _stop(thread: threading.Thread, room: threading.Semaphore, stopped: threading.Event) -> None:
    stopped.set()
    room.release()
    if thread is not threading.current_thread():  # garbage may be collected in any thread
        thread.join()
