"""Glob patterns over relative paths, compiled once to one regular expression.

`*`, `?` and `[...]` stay within one name, `**` as a whole segment stands for any number of folders.
A name that starts with a dot is matched only by a pattern that writes that dot.
"""

import re
from collections.abc import Sequence

AUDIO_ENDINGS = (
    "wav",
    "flac",
    "mp3",
    "ogg",
    "oga",
    "opus",
    "m4a",
    "mp4",
    "aac",
    "aif",
    "aiff",
    "aifc",
    "wma",
)


def glob_problem(pattern: str) -> str | None:
    """Return what is wrong with a pattern, or None.

    Examples
    --------
    >>> glob_problem("../*.wav")
    "must not hold '..': it matches below the collection's folder"
    """
    if not pattern:
        return "must not be empty"
    if pattern.startswith("/"):
        return "must be relative to the collection's folder"
    segments = pattern.split("/")
    if ".." in segments:
        return "must not hold '..': it matches below the collection's folder"
    if "" in segments[:-1] or "." in segments:
        return "must not hold '.' or an empty name between slashes"
    return None


def _segments(pattern: str) -> list[str]:
    """Segments of a pattern; `folder/` means `folder/**`, `**/**` means `**`."""
    if pattern.endswith("/"):
        pattern += "**"
    segments: list[str] = []
    for segment in pattern.split("/"):
        if segment != "**" or segments[-1:] != ["**"]:
            segments.append(segment)
    return segments


def _set_expression(body: str) -> str:
    """Regular expression of `[body]`: one character, never a slash."""
    negated = body.startswith("!")
    characters = body[1:] if negated else body
    parts: list[str] = []
    at = 0
    while at < len(characters):
        if characters[at + 1 : at + 2] == "-" and at + 2 < len(characters):
            low, high = characters[at], characters[at + 2]
            if low <= high:
                parts.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            parts.append(re.escape(characters[at]))
            at += 1
    if not parts:  # only empty ranges such as [z-a]
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{''.join(parts)}]"


def _segment_expression(segment: str, *, hidden: bool) -> str:
    """Regular expression of one name."""
    parts: list[str] = []
    if not hidden and segment[:1] in ("*", "?", "["):
        parts.append(r"(?!\.)")
    at = 0
    while at < len(segment):
        character = segment[at]
        at += 1
        if character == "*":
            if parts[-1:] != ["[^/]*"]:
                parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[":
            # A ] right after [ or [! is a member of the set, as in the shell.
            end = segment.find("]", at + (2 if segment[at : at + 1] == "!" else 1))
            if end < 0:
                parts.append(r"\[")
            else:
                parts.append(_set_expression(segment[at:end]))
                at = end + 1
        else:
            parts.append(re.escape(character))
    expression = "".join(parts)
    # A segment of only stars matches a name, not the empty string.
    return f"(?=[^/]){expression}" if not segment.strip("*") else expression


def translate(pattern: str, *, hidden: bool = False) -> str:
    """Return the regular expression of a glob, for `re.fullmatch` with `re.DOTALL`.

    Parameters
    ----------
    pattern
        Glob over a relative path with `/` between the names.
    hidden
        Whether wildcards also match names that start with a dot.

    Examples
    --------
    >>> bool(re.fullmatch(translate("**/*.ogg"), "a/b/c.ogg"))
    True
    """
    name = "[^/]+" if hidden else r"[^/.][^/]*"
    segments = _segments(pattern)
    parts: list[str] = []
    for segment in segments[:-1]:
        parts.append(
            f"(?:{name}/)*" if segment == "**" else _segment_expression(segment, hidden=hidden) + "/"
        )
    last = segments[-1]
    parts.append(f"(?:{name}/)*{name}" if last == "**" else _segment_expression(last, hidden=hidden))
    return "".join(parts)


def _folders_expression(pattern: str) -> str:
    """Regular expression of the folders below which a pattern can match; hidden names are judged apart."""
    segments = _segments(pattern)
    folders = segments if segments[-1] == "**" else segments[:-1]
    expression = tail = ""
    for depth, segment in enumerate(folders):
        slash = "/" if depth else ""
        if segment == "**":
            # The slash before ** belongs to what follows it.
            expression += f"(?:{slash}.*"
            tail += ")?"
            break
        expression += f"(?:{slash}{_segment_expression(segment, hidden=True)}"
        tail += ")?"
    return expression + tail


class PathFilter:
    """Which files of a folder are meant, and which folders are worth a look.

    Parameters
    ----------
    include
        Globs; a file is meant if one of them matches. None means every audio ending, in either case,
        at any depth.
    exclude
        Globs; a file that one of them matches is not meant. Their wildcards match hidden names too.
    """

    def __init__(self, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> None:
        if include is None:
            audio = rf"(?:[^/.][^/]*/)*[^/.][^/]*\.(?i:{'|'.join(AUDIO_ENDINGS)})"
            included, folders, names = [audio], [".*"], []
        else:
            included = [translate(pattern) for pattern in include]
            folders = [_folders_expression(pattern) for pattern in include]
            names = [segment for pattern in include for segment in _segments(pattern) if segment[0] == "."]
        excluded = [translate(pattern, hidden=True) for pattern in exclude]
        pruned = [
            translate("/".join(_segments(pattern)[:-1]), hidden=True)
            for pattern in exclude
            if _segments(pattern)[-1] == "**" and len(_segments(pattern)) > 1
        ]
        not_below = f"(?!(?:{'|'.join(excluded)})\\Z)" if excluded else ""
        self._file = re.compile(f"{not_below}(?:{'|'.join(included)})", re.DOTALL)
        not_pruned = f"(?!(?:{'|'.join(pruned)})\\Z)" if pruned else ""
        self._folder = re.compile(f"{not_pruned}(?:{'|'.join(folders)})", re.DOTALL)
        hidden = [_segment_expression(name, hidden=True) for name in names]
        self._hidden = re.compile("|".join(hidden) or "(?!)", re.DOTALL)

    def matches(self, path: str) -> bool:
        """Return whether the file at a relative path is meant."""
        return self._file.fullmatch(path) is not None

    def descends(self, path: str) -> bool:
        """Return whether the folder at a relative path can hold a file that is meant."""
        name = path.rpartition("/")[2]
        if name.startswith(".") and not self._hidden.fullmatch(name):
            return False
        return self._folder.fullmatch(path) is not None
