"""Help in one way: what to fill in are nouns in upper case, without brackets and types."""

import re
from typing import Any

from typer.core import TyperCommand


class Verb(TyperCommand):
    """A command whose help says ``TRACK`` where typer says ``{TRACK}`` and ``TRACK <str>``."""

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        usage, rule, rest = super().get_help(ctx).partition("\n\n")
        rest = re.sub(
            r"^  ([A-Z@]+)( <[^>]+>)(?=\s)",
            lambda row: f"  {row[1]}{' ' * len(row[2])}",
            rest,
            flags=re.MULTILINE,
        )
        return re.sub(r"\{([^}]*)\}", r"\1", usage) + rule + rest
