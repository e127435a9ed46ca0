"""Decoders of audio files: blocks of samples at the file's own rate, by FFmpeg (PyAV) or libsndfile.

Decoding bounds the speed of everything else, so FFmpeg's usual way (`FFmpegSource._smooth_blocks`) is one
filter graph: reading, decoding and collecting the codec's small frames into blocks happen without Python. At
the first irregularity (a broken packet, a new sample rate) the graph gives up, and the careful way decodes the
file again frame by frame, drops what was handed out already and goes on. libsndfile reads uncompressed files,
and takes over when FFmpeg cannot open a file.
"""

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Literal

import av
import av.container
import av.filter
import av.logging
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

_BLOCK = 32_768  # samples a block: the fastest of 4,096 to 131,072, it stays in the L2 cache
_TOLERANCE_S = 0.1  # by which encoders' padding lets declared and decoded lengths differ
_OGG_PAGE_MAX = 65_307  # bytes

# Demuxers that read the one file they are given: playlists (HLS, concat, DASH) would open others.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,iff,loas,matroska,webm,mlp,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,oma,qcp,rm,shn,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
_ONLY_FILES = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}

# Containers whose declared length is a count, not an estimate from the bit rate.
_COUNTING = {"aiff", "ape", "asf", "caf", "flac", "matroska", "mov", "ogg", "tta", "w64", "wav", "wv"}

_SOUNDFILE_CODECS = {
    "PCM_S8": "pcm_s8", "PCM_U8": "pcm_u8", "PCM_16": "pcm_s16", "PCM_24": "pcm_s24", "PCM_32": "pcm_s32",
    "FLOAT": "pcm_f32", "DOUBLE": "pcm_f64", "MPEG_LAYER_III": "mp3",
}  # fmt: skip

av.logging.set_level(None)  # FFmpeg's remarks on damaged files are not for stderr


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What an audio file holds, before resampling.

    Parameters
    ----------
    codec
        Name of the codec: ``vorbis``, ``opus``, ``mp3``, ``flac``, ``pcm_s16`` and so on.
    sample_rate
        Hz, at the start of the file.
    channels
        Number of channels, at the start of the file.
    decoder
        The library that decodes it.
    """

    codec: str
    sample_rate: int
    channels: int
    decoder: Literal["pyav", "soundfile"]


@dataclass(frozen=True, slots=True)
class Block:
    """Sum of the channels, shape (sample,); times `scale` it is their mean."""

    total: NDArray[np.float32]
    scale: float
    sample_rate: int
    start_s: float | None = None


class Unusable(Exception):  # noqa: N818 - becomes an AudioError where the uri is known
    """Why a file cannot be used, in one line."""


def audio_source(path: str) -> "FFmpegSource | SoundFileSource":
    """Opened file, by the faster library for its format that can open it."""
    try:
        mode = os.stat(path)
        if stat.S_ISDIR(mode.st_mode):
            raise Unusable("is a directory, not an audio file")
        if not stat.S_ISREG(mode.st_mode):
            raise Unusable("is not a regular file")
        with open(path, "rb") as file:
            head = file.read(12)
    except FileNotFoundError as error:
        raise Unusable("no such file") from error
    except PermissionError as error:
        raise Unusable("no permission to read the file") from error
    except (OSError, ValueError) as error:
        raise Unusable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not head:
        raise Unusable("the file is empty (0 bytes)")
    uncompressed = head[:4] in (b"RIFF", b"RF64", b"riff", b"FORM", b".snd")
    try:
        return SoundFileSource(path) if uncompressed else FFmpegSource(path)
    except Unusable as error:
        try:
            return FFmpegSource(path) if uncompressed else SoundFileSource(path)
        except Unusable as other:
            if head[4:8] == b"ftyp" and isinstance(error.__cause__, av.FFmpegError):
                error = Unusable(
                    "the index of the MP4 file (its moov atom) is missing: the file is incomplete"
                )
            raise (other if uncompressed else error) from other  # FFmpeg's word: it knows more formats


class SoundFileSource:
    """Blocks read by libsndfile."""

    def __init__(self, path: str) -> None:
        try:
            self._file = sf.SoundFile(path)
        except (sf.LibsndfileError, TypeError) as error:  # TypeError: raw samples, by the name's ending
            raise Unusable("is not audio in a known format, or its header is damaged") from error
        subtype = self._file.subtype if self._file.format != "FLAC" else "flac"
        codec = _SOUNDFILE_CODECS.get(subtype, subtype.lower())
        self.info = AudioInfo(codec, self._file.samplerate, self._file.channels, "soundfile")
        self._path = path
        self._done = 0

    def blocks(self) -> Iterator[Block]:
        """Blocks of the whole file, to be iterated once; a block's samples hold until the next is asked for."""
        buffer = np.empty((_BLOCK, self.info.channels), np.float32)
        try:
            while len(samples := self._file.read(out=buffer)):
                self._done += len(samples)
                yield _interleaved(samples, self.info.sample_rate)
        except sf.LibsndfileError as error:
            if not self._done:
                raise Unusable("its audio data are damaged") from error

    def loss(self) -> str | None:
        """What is missing of the audio, in words."""
        rate, declared = self.info.sample_rate, self._file.frames
        if declared < 2**62 and declared - self._done > _TOLERANCE_S * rate:  # 2**63 - 1: unknown
            return f"the file ends early: {self._done / rate:.1f} s of {declared / rate:.1f} s can be decoded"
        return _cut_chunk(self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FFmpegSource:
    """Blocks decoded by FFmpeg through PyAV."""

    def __init__(self, path: str) -> None:
        self._path = path
        with _opened(path) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, av.AudioStream):
                raise Unusable("has no audio stream")
            context = stream.codec_context
            if context is None:
                raise Unusable("no decoder here knows its audio codec")
            codec = context.codec.name.removesuffix("float")
            self.info = AudioInfo(codec, context.sample_rate, context.layout.nb_channels, "pyav")
            self._index = stream.index
            formats = set(container.format.name.split(","))
            self._ogg = "ogg" in formats
            self._declared_s: float | None = None
            if "mp3" in formats:
                self._declared_s = _mp3_length_s(path, context.sample_rate)
            elif formats & _COUNTING and stream.duration is not None and stream.time_base is not None:
                self._declared_s = float(stream.duration * stream.time_base)
        if not self.info.sample_rate or not self.info.channels:
            raise Unusable("has a header but no audio that can be decoded")
        self._count_anew()

    def _count_anew(self) -> None:
        self._decoded_s = self._last_s = 0.0
        self._first_s: float | None = None
        self._broken_inside = self._broken_last = 0  # packets before, and after, the last good one

    def blocks(self) -> Iterator[Block]:
        """Blocks of the whole file, to be iterated once; a block's samples hold until the next is asked for."""
        done = 0
        try:
            for block in self._smooth_blocks():
                self._count(block)
                done += len(block.total)
                yield block
        except (av.FFmpegError, UnicodeEncodeError, _Irregular):
            self._count_anew()
            yield from _gathered(self._careful_blocks(), skip=done)

    def _count(self, block: Block) -> None:
        length_s = len(block.total) / block.sample_rate
        self._decoded_s += length_s
        if block.start_s is not None:
            self._first_s = block.start_s if self._first_s is None else self._first_s
            self._last_s = block.start_s + length_s

    def _smooth_blocks(self) -> Iterator[Block]:
        """Blocks out of one filter graph; any irregularity raises."""
        channels = self.info.channels
        graph = av.filter.Graph()
        graph.threads = 1  # one worker a core
        movie = graph.add(
            "amovie",
            filename="file:" + self._path,
            stream_index=str(self._index),
            dec_threads="1",
            format_opts=":".join(f"{key}={value}" for key, value in _ONLY_FILES.items()),
        )
        # PyAV miscounts eight planes and more: hence interleaved beyond stereo.
        as_float = graph.add("aformat", sample_fmts="fltp" if channels <= 2 else "flt")
        collect = graph.add("asetnsamples", n=str(_BLOCK), p="0")
        sink = graph.add("abuffersink")
        graph.link_nodes(movie, as_float, collect, sink).configure()
        total = np.empty(_BLOCK, np.float32)
        while True:
            try:
                frame = sink.pull()
            except av.EOFError:
                return
            if not isinstance(frame, av.AudioFrame) or frame.layout.nb_channels != channels:
                raise _Irregular
            length = frame.samples
            if channels <= 2:
                planes = [np.frombuffer(memoryview(plane), np.float32, length) for plane in frame.planes]
                mix = planes[0] if channels == 1 else np.add(planes[0], planes[1], out=total[:length])
                yield Block(mix, 1 / channels, frame.sample_rate, frame.time)
            else:
                yield _packed(frame, frame.time)

    def _careful_blocks(self) -> Iterator[Block]:
        """Blocks frame by frame: over broken packets, and through changes of rate and channels."""
        with _opened(self._path) as container:
            packets = container.demux(container.streams[self._index])
            form: tuple[str, str, int] | None = None
            while True:
                try:
                    packet = next(packets, None)
                except av.FFmpegError:  # the file ends within something
                    self._broken_last += 1
                    return
                if packet is None:
                    return
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self._broken_last += 1
                    continue
                for frame in frames:
                    if not isinstance(frame, av.AudioFrame) or not frame.samples:
                        continue
                    self._broken_inside += self._broken_last
                    self._broken_last = 0
                    if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
                        to_float = av.AudioResampler(format="flt")  # of the sample format only
                    start_s = frame.time
                    for packed in to_float.resample(frame):
                        block = _packed(packed, start_s)
                        self._count(block)
                        yield block

    def loss(self) -> str | None:
        """What is missing of the audio, in words."""
        gap_s = self._last_s - (self._first_s or 0.0) - self._decoded_s
        if gap_s > _TOLERANCE_S:
            return f"{gap_s:.1f} s in the middle are damaged and left out"
        if self._broken_inside:
            return f"{self._broken_inside} packets in the middle are damaged and left out"
        if self._declared_s is not None and self._declared_s - self._decoded_s > _TOLERANCE_S:
            whole = f"{self._declared_s:.1f} s"
            return f"the file ends early: {self._decoded_s:.1f} s of {whole} can be decoded"
        if self._broken_last and self._declared_s is None:
            return f"the file ends within a packet, after {self._decoded_s:.1f} s"
        if self._ogg and not _has_last_page(self._path):
            return f"the file ends early, after {self._decoded_s:.1f} s: its end-of-stream page is missing"
        return None

    def close(self) -> None:
        """Hold nothing: container and graph end with the iteration."""


class _Irregular(Exception):  # noqa: N818 - a signal between two ways of decoding
    """The file changes where the filter graph cannot follow."""


def _opened(path: str) -> av.container.InputContainer:
    """Container of a local file; FFmpeg gets no other protocol."""
    try:
        return av.open("file:" + path, metadata_errors="replace", container_options=_ONLY_FILES)
    except av.InvalidDataError as error:
        raise Unusable("is not audio in a known format, or its header is damaged") from error
    except av.ArgumentError as error:  # also what a demuxer off the list gives
        raise Unusable("is not audio in a known format") from error
    except av.FFmpegError as error:
        raise Unusable(f"cannot be opened: {(error.strerror or 'unknown error').lower()}") from error


def _interleaved(samples: NDArray[np.float32], sample_rate: int, start_s: float | None = None) -> Block:
    """Block of samples of shape (sample, channel)."""
    channels = samples.shape[1]
    total = samples[:, 0] if channels == 1 else samples[:, 0] + samples[:, 1]
    for channel in range(2, channels):  # faster than a sum over the short axis
        total += samples[:, channel]
    return Block(total, 1 / channels, sample_rate, start_s)


def _packed(frame: av.AudioFrame, start_s: float | None) -> Block:
    """Block of a frame in the sample format ``flt``."""
    channels = frame.layout.nb_channels
    flat = np.frombuffer(memoryview(frame.planes[0]), np.float32, frame.samples * channels)
    return _interleaved(flat.reshape(-1, channels), frame.sample_rate, start_s)


def _gathered(blocks: Iterator[Block], *, skip: int) -> Iterator[Block]:
    """Frames joined to blocks, without the first `skip` samples."""
    for (rate, scale), stretch in groupby(blocks, key=attrgetter("sample_rate", "scale")):
        held: list[NDArray[np.float32]] = []
        for block in stretch:
            held.append(block.total[skip:])
            skip = max(0, skip - len(block.total))
            if sum(map(len, held)) >= _BLOCK:
                yield Block(np.concatenate(held), scale, rate)
                held = []
        if any(map(len, held)):
            yield Block(np.concatenate(held), scale, rate)


def _mp3_length_s(path: str, sample_rate: int) -> float | None:
    """Least length that an MP3 declares in its Xing, Info or VBRI header (FFmpeg may answer with an estimate)."""
    with open(path, "rb") as file:
        head = file.read(10)
        start = 0
        if head[:3] == b"ID3":
            size = [byte & 0x7F for byte in head[6:10]]
            start = 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
        file.seek(start)
        head = file.read(1024)
    for tag, place in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = head.find(tag)
        if found >= 0 and len(head) >= found + 18 and (tag == b"VBRI" or head[found + 7] & 1):
            (frames,) = struct.unpack_from(">I", head, found + place)
            # two frames are what encoders' delay and padding may take away
            return float((frames - 2) * (1152 if sample_rate >= 32_000 else 576) / sample_rate)
    return None


def _has_last_page(path: str) -> bool:
    """Whether the last page of an Ogg file ends its stream."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2 * _OGG_PAGE_MAX))
        tail = file.read()
    page = tail.rfind(b"OggS\0")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)


def _cut_chunk(path: str) -> str | None:
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
