"""The command line: one file a verb."""

import os
import sys

from features.errors import MirstoreError


def main() -> None:
    """Run the command line: expected errors are one line and exit 2, bugs keep their traceback."""
    from pipeline.commands.app import app

    try:
        app(prog_name="mirstore")
    except MirstoreError as error:
        print(f"mirstore: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except BrokenPipeError:  # `mirstore status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
