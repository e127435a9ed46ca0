"""The line that is typed: help, and what is wrong with it in one line."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from features.framing import Grid
from pipeline.commands import main
from pipeline.store.index import Index

COMMAND = Path(sys.executable).with_name("mirstore")

VERBS = (
    "extract status features failures show query export snapshots diff verify prune forget drop compact gc "
    "labels catalog"
).split()
VERBS_OF_GROUPS = [
    ("labels", "add"),
    ("labels", "remove"),
    ("labels", "list"),
    ("catalog", "schema"),
    ("catalog", "check"),
]


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
        (
            ("extract", "--workers", "two"),
            "Invalid value for '--workers': expected a whole number, got 'two'. `mirstore extract --help`",
        ),
        (("gc", "--grace", "-3"), "expected at least 0, got '-3'. `mirstore gc --help`"),
        (("gc", "--keep", "week"), "expected a number, got 'week'."),
        (("show", "a", "-o"), "Option '-o' requires an argument. `mirstore show --help`"),
        (("labels", "add", "--by"), "requires an argument. `mirstore labels add --help`"),
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


@pytest.mark.parametrize("group", ["labels", "catalog"])
def test_help_of_a_group_tells_its_verbs_in_whole_lines(group: str) -> None:
    _, out, _ = outcome(group, "--help")
    lines = out.partition("Commands:\n")[2].splitlines()
    assert len(lines) > 1
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize("line", [*VERBS, *(f"{group} {verb}" for group, verb in VERBS_OF_GROUPS)])
def test_help_names_what_to_fill_in_by_nouns_in_upper_case(line: str) -> None:
    """No brackets of types, and no name of a Python variable."""
    _, out, _ = outcome(*line.split(), "--help")
    assert "<" not in out
    assert "{" not in out
    usage = out.partition("\n\n")[0].removeprefix(f"Usage: mirstore {line}").replace("...", "")
    assert re.fullmatch(r"( \[?[A-Z@]+\]?)*", usage)
    arguments = out.partition("Arguments:\n")[2].partition("\n\n")[0]
    assert all(re.match(r"  [A-Z@]+(\.\.\.)?  | {5}", row) for row in arguments.splitlines())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["--help", "catalog schema", "status"])
def test_a_result_that_cannot_be_written_is_told_in_one_line(
    empty_project: Any, line: str, unbuffered: str
) -> None:
    Index.create(empty_project.store_folder, Grid(256, 64))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, *line.split()],
            cwd=empty_project.folder,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert re.fullmatch(r"mirstore: standard output .*: No space left on device\..*\n", done.stderr)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str) -> None:
    code, out, err = outcome(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: mirstore {verb}")
    assert all(len(line) <= 80 for line in out.splitlines())
