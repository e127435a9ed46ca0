"""Decoders of audio files: blocks of samples at the file's own rate, by FFmpeg (PyAV) or libsndfile.

Decoding bounds the speed of everything else, so FFmpeg's usual way (`FFmpegSource._smooth_blocks`) is one
filter graph: reading, decoding and collecting the codec's small frames into blocks happen without Python. At
the first irregularity (a broken packet, a new sample rate) the graph gives up, and the careful way decodes the
file again frame by frame, drops what was handed out already and goes on. libsndfile reads uncompressed files,
and takes over when FFmpeg cannot open a file.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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

from pipeline.audio_headers import cut_chunk, mp3_length_s, next_link, ogg_ending
from pipeline.audio_tags import file_tags

_BLOCK = 32_768  # samples a block: the fastest of 4,096 to 131,072, it stays in the L2 cache
_TOLERANCE_S = 0.1  # by which encoders' padding lets declared and decoded lengths differ

# Demuxers that read the one file they are given: playlists (HLS, concat, DASH) would open others.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,iff,loas,matroska,webm,mlp,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,oma,qcp,rm,shn,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
_ONLY_FILES = {"protocol_whitelist": "file,subfile", "format_whitelist": _DEMUXERS}

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
    tags
        What its tags say, as `pipeline.audio_tags.file_tags` gives it.
    """

    codec: str
    sample_rate: int
    channels: int
    decoder: Literal["pyav", "soundfile"]
    tags: Mapping[str, str | float] = field(default_factory=dict, hash=False)


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
    spare = uncompressed or head[:4] in (b"OggS", b"fLaC", b"caff")  # for others libsndfile writes to stderr
    try:
        return SoundFileSource(path) if uncompressed else FFmpegSource(path)
    except Unusable as error:
        if head[4:8] == b"ftyp" and isinstance(error.__cause__, av.FFmpegError):
            raise Unusable(
                "the index of the MP4 file (its moov atom) is missing: it is incomplete"
            ) from error
        if not spare:
            raise
        try:
            return FFmpegSource(path) if uncompressed else SoundFileSource(path)
        except Unusable as other:
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
        tags = file_tags(_ffmpeg_tags(path), self._file.copy_metadata())
        self.info = AudioInfo(codec, self._file.samplerate, self._file.channels, "soundfile", tags)
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
        return cut_chunk(self._path)

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
            tags = file_tags(container.metadata, stream.metadata)  # Ogg has them with the stream
            self.info = AudioInfo(codec, context.sample_rate, context.layout.nb_channels, "pyav", tags)
            self._index = stream.index
            formats = set(container.format.name.split(","))
            self._ogg = "ogg" in formats
            self._declared_s: float | None = None
            if "mp3" in formats:
                self._declared_s = mp3_length_s(path, context.sample_rate)
            elif formats & _COUNTING and stream.duration is not None and stream.time_base is not None:
                self._declared_s = float(stream.duration * stream.time_base)
        if not self.info.sample_rate or not self.info.channels:
            raise Unusable("has a header but no audio that can be decoded")
        self._count_anew()

    def _count_anew(self) -> None:
        self._decoded_s = self._last_s = self._resumed_s = 0.0
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
                if self._ogg and not ogg_ending(self._path)[1]:
                    raise _Irregular from None  # the graph takes a refused link of a chained Ogg for the end
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
        link: int | None = 0
        while link is not None:
            with _opened(self._path, link) as container:
                stream = container.streams[self._index] if link == 0 else container.streams.best("audio")
                if not isinstance(stream, av.AudioStream):
                    return
                packets = container.demux(stream)
                try:
                    yield from self._decoded(packets)
                    return
                except av.PatchWelcomeError:  # FFmpeg refuses another rate in the next link of a chained Ogg
                    link = next_link(self._path, link) if self._ogg else None
                except av.FFmpegError:  # the file ends within something
                    self._broken_last += 1
                    return

    def _decoded(self, packets: "Iterator[av.Packet[av.AudioStream]]") -> Iterator[Block]:
        form: tuple[str, str, int] | None = None
        for packet in packets:
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._broken_last += 1
                continue
            for frame in frames:
                if not frame.samples:
                    continue
                if self._broken_last:
                    self._broken_inside += self._broken_last
                    self._broken_last, self._resumed_s = 0, self._decoded_s
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
        missing_s = 0.0 if self._declared_s is None else self._declared_s - self._decoded_s
        cut = missing_s > _TOLERANCE_S
        # A cut packet may leave a last frame behind it: that is the end, not the middle.
        if self._broken_inside and not (cut and self._decoded_s - self._resumed_s < 0.5):
            what = (
                "1 packet in the middle is"
                if self._broken_inside == 1
                else f"{self._broken_inside} packets in the middle are"
            )
            return f"{what} damaged and left out"
        if cut:
            whole_s = self._decoded_s + missing_s
            return f"the file ends early: {self._decoded_s:.1f} s of {whole_s:.1f} s can be decoded"
        if self._broken_last and self._declared_s is None:
            return f"the file ends within a packet, after {self._decoded_s:.1f} s"
        if self._ogg and not ogg_ending(self._path)[0]:
            return f"the file ends early, after {self._decoded_s:.1f} s: its end-of-stream page is missing"
        return None

    def close(self) -> None:
        """Hold nothing: container and graph end with the iteration."""


class _Irregular(Exception):  # noqa: N818 - a signal between two ways of decoding
    """The file changes where the filter graph cannot follow."""


def _ffmpeg_tags(path: str) -> dict[str, str]:
    """Tags of a file that libsndfile decodes: it leaves out ReplayGain, album artists and ID3."""
    try:
        with _opened(
            path, probesize="4096"
        ) as container:  # without trying to decode: a third of a millisecond
            return dict(container.metadata)
    except (Unusable, UnicodeEncodeError):
        return {}


def _opened(path: str, start: int = 0, **options: str) -> av.container.InputContainer:
    """Container of a local file, from byte `start` on; FFmpeg gets no other protocol."""
    try:
        url = f"subfile,,start,{start},end,{os.path.getsize(path)},,:file:{path}" if start else f"file:{path}"
        return av.open(url, metadata_errors="replace", container_options={**_ONLY_FILES, **options})
    except av.InvalidDataError as error:
        raise Unusable("is not audio in a known format, or its header is damaged") from error
    except av.ArgumentError as error:  # also what a demuxer off the list gives
        raise Unusable("is not audio in a known format") from error
    except FileNotFoundError as error:
        raise Unusable("no such file") from error
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
