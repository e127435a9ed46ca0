"""The command line: one file a verb."""

import os
import sys
from typing import Any, NoReturn

from features.errors import MirstoreError


def main() -> None:
    """Run the command line: expected errors are one line and exit 2, bugs keep their traceback."""
    import typer

    from pipeline.commands.app import app

    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="mirstore", standalone_mode=False))
    except MirstoreError as error:
        _refuse(str(error))
    except typer.TyperException as error:  # of the line typed: an unknown option, a missing argument
        _refuse(_usage(error))
    except BrokenPipeError:  # `mirstore status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _refuse(line: str) -> NoReturn:
    print(f"mirstore: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mirstore"
    message = error.format_message()
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} `{command} --help` says what there is."
