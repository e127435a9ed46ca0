"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pipeline.commands.output import counted, readable_bytes, readable_time

if TYPE_CHECKING:
    from pipeline.planning import Plan
    from pipeline.reports import Progress as Snapshot

LINE_EVERY_S = 5.0


class ProgressDisplay:
    """Shows `pipeline.reports.Progress` on standard error.

    Parameters
    ----------
    quiet
        Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line = 0.0
        self._last = ""
        self._told = False

    def planned(self, todo: "Plan") -> None:
        """Say what will be done."""
        from pipeline.planning import Action

        extract, compute = len(todo.of(Action.EXTRACT)), len(todo.of(Action.COMPUTE))
        if self._quiet or not extract + compute:
            return
        words = [f"{counted(extract, 'song')} to decode"] if extract else []
        if unopened := len(todo.of(Action.FAIL)):
            words.append(f"{counted(unopened, 'file')} that cannot be opened")
        if compute:
            words.append(f"{counted(compute, 'song')} to compute from the cache")
        self._say(", ".join(words) + ". Starting workers.")
        if self._console.is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=None)

    def refused(self, address: str, reason: str) -> None:
        """Name a worker that is not used; also where nothing else is shown."""
        self._console.print(f"mirstore: worker {address} is not used: {reason}", markup=False, soft_wrap=True)

    def update(self, snapshot: "Snapshot") -> None:
        """Show the newest figures."""
        if self._quiet:
            return
        words = describe(snapshot)
        if snapshot.interrupted and not self._told:
            self._told = True
            self._console.print("Finishing the jobs in flight; Ctrl-C again abandons them.")
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                description=words,
                completed=snapshot.work_done or snapshot.songs_done,
                total=snapshot.work_total or snapshot.songs_total,
            )
        elif time.monotonic() >= self._next_line and snapshot.songs_done and words != self._last:
            self._say(words)
            self._next_line, self._last = time.monotonic() + LINE_EVERY_S, words

    def _say(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)  # noqa: T201

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class StepDisplay:
    """Shows how far one of a number of steps is, on standard error: a bar on a terminal, now and then a line.

    Parameters
    ----------
    words
        What the steps are.
    quiet
        Show nothing.
    as_bytes
        Steps are bytes.
    """

    def __init__(self, words: str, *, quiet: bool = False, as_bytes: bool = False) -> None:
        self._words = words
        self._quiet = quiet
        self._format = readable_bytes if as_bytes else "{:,}".format
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._begun = time.monotonic()
        self._next_line = self._begun + LINE_EVERY_S

    def update(self, done: int, total: int) -> None:
        """Show the newest figures."""
        if self._quiet or not total:
            return
        elapsed_s = time.monotonic() - self._begun
        left = f", {readable_time(elapsed_s / done * (total - done))} left" if done else ""
        words = f"{self._format(done)} of {self._format(total)} {self._words}{left}"
        if self._console.is_terminal:
            if self._bar is None:
                self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self._console)
                self._bar.start()
                self._task = self._bar.add_task("", total=total)
            if self._task is not None:
                self._bar.update(self._task, description=words, completed=done, total=total)
        elif time.monotonic() >= self._next_line:
            print(words, file=sys.stderr, flush=True)  # noqa: T201
            self._next_line = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> "StepDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(snapshot: "Snapshot") -> str:
    """Return one line: songs, hours, speed, time left, failures."""
    speed = snapshot.audio_s / snapshot.elapsed_s if snapshot.elapsed_s else 0.0
    words = [f"{snapshot.songs_done:,} of {counted(snapshot.songs_total, 'song')}"]
    if snapshot.audio_s:
        words += [f"{snapshot.audio_s / 3600:.2f} h of audio", f"{speed:,.0f} x real time"]
    if snapshot.left_s is not None:
        words.append(f"{readable_time(snapshot.left_s)} left")
    words.append(f"{counted(snapshot.failures, 'failure')} so far")
    return ", ".join(words)
