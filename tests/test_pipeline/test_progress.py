"""What a run shows while it goes on."""

import io
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from pipeline.commands.progress import ProgressDisplay, describe
from pipeline.reports import Progress


@pytest.fixture(autouse=True)
def _eight_seconds_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reports.time", SimpleNamespace(monotonic=lambda: 108.0))


def halfway() -> Progress:
    return Progress(
        songs_total=40, songs_done=20, failures=1, audio_s=7200.0, started=100.0,
        work_total=100.0, work_done=80.0,
    )  # fmt: skip


def test_a_line_says_songs_hours_speed_time_left_and_failures() -> None:
    assert (
        describe(halfway()) == "20 of 40 songs, 2.00 h of audio, 900 x real time, 2 s left, 1 failure so far"
    )


def test_time_left_is_unknown_before_anything_is_done() -> None:
    progress = Progress(songs_total=3, work_total=5.0)
    assert progress.left_s is None
    assert describe(progress) == "0 of 3 songs, 0 failures so far"


class _Plan:
    def of(self, *actions: object) -> pd.DataFrame:
        return pd.DataFrame(index=range(40 if actions[0] == "extract" else 0))


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProgressDisplay() as plain:
        plain.planned(_Plan())  # type: ignore[arg-type]
        plain.update(halfway())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "40 songs to decode. Starting workers."
    assert lines[1].startswith("20 of 40 songs, 2.00 h of audio")

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("pipeline.commands.progress.Console", lambda **_: terminal)
    with ProgressDisplay() as bar:
        bar.planned(_Plan())  # type: ignore[arg-type]
        bar.update(halfway())
    assert "20 of 40 songs" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(quiet=True) as display:
        display.planned(_Plan())  # type: ignore[arg-type]
        display.update(halfway())
    assert capsys.readouterr() == ("", "")
