"""What the bytes of an audio file declare about its length, where the decoders do not tell."""

import os
import struct
from typing import BinaryIO

_OGG_PAGE_MAX = 65_307  # bytes


def mp3_length_s(path: str, sample_rate: int) -> float | None:
    """Least length that an MP3 declares in its Xing, Info or VBRI header (FFmpeg may answer with an estimate)."""
    with open(path, "rb") as file:
        head = file.read(10)
        start = 0
        if head[:3] == b"ID3":
            size = [byte & 0x7F for byte in head[6:10]]
            start = 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
        head = _read_at(file, start, 1024)
    for tag, place in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = head.find(tag)
        if found >= 0 and len(head) >= found + 18 and (tag == b"VBRI" or head[found + 7] & 1):
            (frames,) = struct.unpack_from(">I", head, found + place)
            # two frames are what encoders' delay and padding may take away
            return float((frames - 2) * (1152 if sample_rate >= 32_000 else 576) / sample_rate)
    return None


def next_link(path: str, start: int) -> int | None:
    """Byte at which the next link of a chained Ogg begins: the next first page after other pages."""
    within = False
    with open(path, "rb") as file:
        while len(head := _read_at(file, start, 27)) == 27 and head[:4] == b"OggS":
            if within and head[5] & 2:
                return start
            within = within or not head[5] & 2
            start += 27 + head[26] + sum(file.read(head[26]))
    return None


def _read_at(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


def ogg_ending(path: str) -> tuple[bool, bool]:
    """Whether the last page of an Ogg file ends its stream, and whether that is the stream of the first page."""
    with open(path, "rb") as file:
        first = file.read(18)
        tail = _read_at(file, max(0, os.path.getsize(path) - 2 * _OGG_PAGE_MAX), 2 * _OGG_PAGE_MAX)
    page = tail[max(0, tail.rfind(b"OggS\0")) :][:18]
    return len(page) == 18 and bool(page[5] & 4), page[14:18] == first[14:18]


def cut_chunk(path: str) -> str | None:
    """What the samples' chunk of a RIFF or AIFF file lacks, in words; libsndfile reads on silently."""
    size, place = os.path.getsize(path), 12
    with open(path, "rb") as file:
        order = {b"RIFF": "<", b"FORM": ">"}.get(file.read(4))
        while order and place + 8 <= size:
            file.seek(place)
            name, length = struct.unpack(f"{order}4sI", file.read(8))
            place += 8
            if name in (b"data", b"SSND"):
                streamed = length >= 2**31 - 2**16  # written before the length was known
                if streamed or place + length <= size:
                    return None
                return f"the file ends early: {size - place} of {length} bytes of samples are there"
            place += length + length % 2
    return None
