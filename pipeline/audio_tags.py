"""What a file's tags say of the song, under one set of names whatever the format.

Only the names below are taken; comments, lyrics, pictures and ratings are left in the file.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping

LONGEST = 500  # characters of a text

# Names that formats and programs use, small, without spaces and underscores.
_TEXTS = {
    "title": ("title", "tit2", "inam"),
    "artist": ("artist", "author", "tpe1", "iart"),
    "album": ("album", "talb", "iprd"),
    "album_artist": ("albumartist", "tpe2"),
    "genre": ("genre", "tcon", "ignr"),
    "date": ("date", "year", "tdrc", "tyer", "icrd"),
    "track": ("track", "tracknumber", "trck", "itrk"),
}
_NUMBERS = {
    "replaygain_track_gain_db": ("r128trackgain", "replaygaintrackgain"),
    "replaygain_track_peak": ("replaygaintrackpeak",),
    "replaygain_album_gain_db": ("r128albumgain", "replaygainalbumgain"),
    "replaygain_album_peak": ("replaygainalbumpeak",),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII)
_Q7_8 = re.compile(r"[+-]?\d{1,5}", re.ASCII)
# Opus states gains to -23 LUFS (RFC 7845, EBU R 128); ReplayGain 2 states them to -18 LUFS.
_REPLAYGAIN_OVER_R128_DB = 5.0


def file_tags(*sources: Mapping[str, str]) -> dict[str, str | float]:
    """Tags of a song from what its file holds.

    Parameters
    ----------
    sources
        Raw tags by the names of the format, the most trusted first.

    Returns
    -------
    dict
        Those that are there, of ``title``, ``artist``, ``album``, ``album_artist``, ``genre``, ``date``,
        ``track`` (text of one line, at most 500 characters) and ``replaygain_track_gain_db``,
        ``replaygain_track_peak``, ``replaygain_album_gain_db``, ``replaygain_album_peak`` (finite numbers;
        gains to ReplayGain's -18 LUFS, also where Opus has them to -23 LUFS).

    Examples
    --------
    >>> file_tags({"TITLE": "Blue", "REPLAYGAIN_TRACK_GAIN": "-6.50 dB", "COMMENT": "ripped"})
    {'title': 'Blue', 'replaygain_track_gain_db': -6.5}
    """
    given: dict[str, list[str]] = {}
    for name, value in _pairs(sources):
        given.setdefault(re.sub(r"[ _]", "", name).casefold(), []).append(value)
    tags: dict[str, str | float] = {}
    for tag, names in _TEXTS.items():
        texts = (_one_line(value) for name in names for value in given.get(name, ()))
        if text := next(filter(None, texts), None):
            tags[tag] = text
    for tag, names in _NUMBERS.items():
        numbers = (_number(name, value) for name in names for value in given.get(name, ()))
        if (number := next((n for n in numbers if n is not None), None)) is not None:
            tags[tag] = number
    return tags


def _pairs(sources: Iterable[Mapping[str, str]]) -> Iterable[tuple[str, str]]:
    return (pair for source in sources for pair in source.items())


def _one_line(value: str) -> str:
    """Text without control characters and what UTF-8 cannot hold."""
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in value[: 4 * LONGEST])
    return " ".join(spaced.split())[:LONGEST].rstrip()


def _number(name: str, value: str) -> float | None:
    text = value.strip().casefold()
    if name.startswith("r128"):
        steps = int(text) if _Q7_8.fullmatch(text) else 2**15
        return steps / 256 + _REPLAYGAIN_OVER_R128_DB if -(2**15) <= steps < 2**15 else None
    text = text.removesuffix("db").rstrip().replace(",", ".")
    number = float(text) if len(text) <= 40 and _NUMBER.fullmatch(text) else math.inf
    if name.endswith("peak") and number < 0:
        return None
    return number if math.isfinite(number) else None
