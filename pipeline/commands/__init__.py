"""The command line: one file a verb."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO, cast

from features.errors import MirstoreError
from pipeline.errors import OutputError


def main() -> None:
    """Run the command line: expected errors are one line each and exit 2, bugs keep their traceback."""
    import typer

    from pipeline.commands.app import app

    arguments = sys.argv[1:] or ["--help"]
    # Nothing is there to be written to where it was closed.
    output = sys.stdout or open(os.devnull, "w")
    try:
        with contextlib.redirect_stdout(cast(TextIO, _Output(output))):
            code = app(arguments, prog_name="mirstore", standalone_mode=False)
        sys.exit(code)
    except OutputError as error:
        _discard(output)
        _refuse(str(error))
    except MirstoreError as error:
        _refuse(str(error))
    except typer.TyperException as error:  # of the line typed: an unknown option, a missing argument
        _refuse(_usage(error, arguments))
    except BrokenPipeError:  # `mirstore status | head`
        _discard(output)
        sys.exit(1)


class _Output:
    """A stream each write of which reaches its end at once, or is an error of its own: `OutputError`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write all of a text."""
        try:
            written = self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(
                f"standard output cannot be written: {error.strerror or error}. Write it to another place."
            ) from error
        return written

    def flush(self) -> None:
        """Do nothing: all is written."""


def _discard(output: TextIO) -> None:
    """Let what a stream still holds lead nowhere, so that the end of the process does not write it again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _refuse(message: str) -> NoReturn:
    for line in message.split("\n"):
        print(f"mirstore: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _usage(error: Any, arguments: Sequence[str]) -> str:
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):  # its text says what was expected only
        from pipeline.catalog_problems import expected

        details = error.__cause__.errors()[0]
        error.message = f"expected {expected(details)}, got {details['input']!r}"
    message = error.format_message()
    ending = "" if message.endswith((".", "?")) else "."
    return f"{message}{ending} `{_command(error, arguments)} --help` says what there is."


def _command(error: Any, arguments: Sequence[str]) -> str:
    """Return the command that a line is for, from the line itself where the error does not know."""
    if context := getattr(error, "ctx", None):
        return str(context.command_path)
    import typer

    from pipeline.commands.app import app

    words: list[str] = ["mirstore"]
    known: Any = typer.main.get_command(app)
    for word in arguments:
        known = getattr(known, "commands", {}).get(word)
        if known is None:
            break
        words.append(word)
    return " ".join(words)
