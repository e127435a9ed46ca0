"""The line that is typed: help, and what is wrong with it in one line."""

import contextlib
import io
import sys
from unittest import mock

import pytest

from pipeline.commands import main

VERBS = (
    "extract status features failures show query export snapshots diff verify prune forget drop compact gc "
    "labels catalog"
).split()


def outcome(*arguments: str) -> tuple[int, str, str]:
    """Exit code and what was printed and told."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["mirstore", *arguments]),
        pytest.raises(SystemExit) as left,
    ):
        main()
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("exprt",), "No such command 'exprt'. Did you mean 'export'? `mirstore --help`"),
        (("extract", "--dry"), "No such option: --dry (Possible options: --dry-run)"),
        (("extract", "--workers", "two"), "Invalid value for '--workers'"),
        (("forget",), "'TRACK...': name at least one track, here or with --from. `mirstore forget --help`"),
        (("forget", "--allow", "--dry-run", "x"), "--allow erases nothing"),
        (("drop",), "Missing argument 'FEATURE@VERSION'. `mirstore drop --help`"),
        (("labels", "list", "more"), "unexpected extra argument(s) (more). `mirstore labels list --help`"),
        (("labels",), "Missing command. `mirstore labels --help`"),
    ],
)
def test_a_wrong_line_is_told_in_one(arguments: tuple[str, ...], words: str) -> None:
    code, out, err = outcome(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("mirstore: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_verb_in_a_whole_line(arguments: tuple[str, ...]) -> None:
    code, out, err = outcome(*arguments)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.partition("Commands:\n")[2].splitlines())
    assert list(lines) == VERBS
    assert not [line for line in lines.values() if line.endswith("...")]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str) -> None:
    code, out, err = outcome(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: mirstore {verb}")
    assert all(len(line) <= 80 for line in out.splitlines())
