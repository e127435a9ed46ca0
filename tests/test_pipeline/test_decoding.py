"""Decoding: formats, exactness against whole-file decoding, and files that are damaged, odd or hostile."""

import contextlib
import gc
import itertools
import os
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import soxr
from numpy.typing import NDArray

from pipeline import audio_sources
from pipeline.decoding import decode, open_audio
from pipeline.errors import AudioError

RATE = 44_100
# ending: FFmpeg's encoder; with its container they are what PyAV can write
ENCODERS = {
    "mp3": "libmp3lame",
    "opus": "libopus",
    "m4a": "aac",
    "wma": "wmav2",
    "flac": "flac",
    "wv": "wavpack",
}


def music(
    seconds: float = 3.0, *, rate: int = RATE, channels: int = 2, gain: float = 0.2
) -> NDArray[np.float32]:
    """Noise and tones of shape (sample, channel), different in every channel."""
    rng = np.random.default_rng(1)
    time_s = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * 220 * (channel + 2) * time_s) for channel in range(channels)]
    noise = 0.2 * rng.standard_normal((channels, len(time_s)))
    return np.asarray(gain * (np.array(tones) + noise).T, np.float32)


def encoded(path: Path, samples: NDArray[np.float32], *, rate: int = RATE, cover: bool = False) -> Path:
    """File written by FFmpeg, the codec given by the ending."""
    codec = ENCODERS[path.suffix[1:]]
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[samples.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        if codec in {"libmp3lame", "libopus"}:
            stream.format = "flt" if codec == "libopus" else "fltp"  # the default of 16 bits would clip
        stream.codec_context.open()
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuvj420p"
        form = stream.codec_context.format
        step = stream.codec_context.frame_size or 4096
        if cover:
            for packet in [*picture.encode(av.VideoFrame(64, 64, "yuvj420p")), *picture.encode(None)]:
                container.mux(packet)
        resampler = av.AudioResampler(format=form, layout=layout, rate=rate)
        for start in range(0, len(samples), step):
            piece = np.ascontiguousarray(samples[start : start + step]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path


def written(
    path: Path, samples: NDArray[np.float32], *, rate: int = RATE, subtype: str | None = None
) -> Path:
    """File written by libsndfile in small pieces (a long Vorbis write overflows its stack)."""
    form = {".opus": "OGG", ".aif": "AIFF"}.get(path.suffix)
    with sf.SoundFile(path, "w", rate, samples.shape[1], subtype, format=form) as file:
        for start in range(0, len(samples), 4096):
            file.write(samples[start : start + 4096])
    return path


def streamed(path: Path, *, sample_rate: int = 12_000) -> tuple[NDArray[np.float32], str | None]:
    with open_audio(path, sample_rate=sample_rate) as stream:
        blocks = list(stream)
    assert all(block.ndim == 1 and block.dtype == np.float32 and len(block) for block in blocks)
    return np.concatenate(blocks), stream.truncated


def whole_pyav(path: Path) -> NDArray[np.float32]:
    """Every frame at once, mean of the channels: the independent way."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        channels = container.streams.audio[0].codec_context.layout.nb_channels
    joined = np.concatenate(frames, axis=1)
    scale = {"i2": 2.0**15, "i4": 2.0**31}.get(joined.dtype.str[1:], 1.0)
    planar = joined.reshape(-1, channels).T if joined.shape[0] != channels else joined
    return (np.add.reduce(planar.astype(np.float32), axis=0) / np.float32(scale) / channels).astype(
        np.float32
    )


@pytest.mark.parametrize("ending", ENCODERS)
def test_stream_equals_whole_file_decoding(tmp_path: Path, ending: str) -> None:
    rate = 48_000 if ending == "opus" else RATE
    path = encoded(tmp_path / f"a.{ending}", music(rate=rate), rate=rate)
    samples, truncated = streamed(path)
    np.testing.assert_array_equal(samples, soxr.resample(whole_pyav(path), rate, 12_000, quality="HQ"))
    assert truncated is None
    assert len(samples) / 12_000 == pytest.approx(3.0, abs=0.12 if ending in {"m4a", "wma"} else 0.01)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["wav", "wavex", "aif", "flac"])
def test_stream_equals_libsndfile(tmp_path: Path, form: str, subtype: str) -> None:
    subtype = subtype if form in {"wav", "wavex"} else {"PCM_U8": "PCM_S8"}.get(subtype, subtype)
    if form == "flac" and subtype not in {"PCM_S8", "PCM_16", "PCM_24"}:
        pytest.skip("FLAC holds integers up to 24 bits")
    path = tmp_path / f"a.{form}"
    sf.write(path, music(), RATE, subtype, format={"wavex": "WAVEX", "aif": "AIFF"}.get(form))
    left, right = sf.read(path, dtype="float32")[0].T
    samples, truncated = streamed(path)
    np.testing.assert_array_equal(samples, soxr.resample((left + right) / 2, RATE, 12_000, quality="HQ"))
    assert truncated is None


def test_vorbis_agrees_with_libvorbis(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ogg", music())
    reference = soxr.resample(sf.read(path, dtype="float32")[0].mean(axis=1), RATE, 12_000, quality="HQ")
    samples, truncated = streamed(path)
    assert truncated is None
    assert abs(len(samples) - len(reference)) <= 36  # FFmpeg may miss the last page's trim by 128 samples
    n = min(len(samples), len(reference)) - 100
    np.testing.assert_allclose(samples[:n], reference[:n], atol=2e-4)


@pytest.mark.parametrize("block", [1000, 4096, 100_000])
def test_block_size_does_not_change_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    for path in (encoded(tmp_path / "a.mp3", music()), written(tmp_path / "a.wav", music())):
        whole, _ = decode(path)
        with monkeypatch.context() as patch:
            patch.setattr(audio_sources, "_BLOCK", block)
            np.testing.assert_array_equal(decode(path)[0], whole)


@pytest.mark.parametrize(
    "rate", [8000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]
)
def test_sine_keeps_frequency_and_level(tmp_path: Path, rate: int) -> None:
    seconds, frequency, level = 2.0, 1000.0, 0.5
    tone = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    path = written(
        tmp_path / "a.wav", np.stack([tone, tone], axis=1).astype(np.float32), rate=rate, subtype="FLOAT"
    )
    samples, info = decode(path)
    assert (info.sample_rate, info.channels, info.codec) == (rate, 2, "pcm_f32")
    assert abs(len(samples) - seconds * 12_000) <= 1
    expected = level * np.sin(2 * np.pi * frequency * np.arange(len(samples)) / 12_000)
    inner = slice(600, -600)  # away from the resampler's edges
    np.testing.assert_allclose(samples[inner], expected[inner], atol=2e-5)
    if rate == 12_000:
        np.testing.assert_array_equal(samples, tone.astype(np.float32))


@pytest.mark.parametrize(
    ("ending", "channels"), [("wav", 1), ("wav", 8), ("ogg", 1), ("ogg", 6), ("flac", 8), ("mp3", 1)]
)
def test_mono_is_the_mean_of_all_channels(tmp_path: Path, ending: str, channels: int) -> None:
    sound = music(1.0, channels=channels, gain=0.1)
    write = encoded if ending in ENCODERS else written
    path = write(tmp_path / f"a.{ending}", sound)
    samples, info = decode(path, sample_rate=RATE)
    assert info.channels == channels
    if ending in {"wav", "flac"}:
        np.testing.assert_allclose(samples, sound.mean(axis=1), atol=4e-5)
    else:
        reference = sf.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
        np.testing.assert_allclose(samples[2000:40_000], reference[2000:40_000], atol=2e-3)


@pytest.mark.parametrize("ending", ["opus", "mp3", "ogg", "wav"])
def test_peaks_beyond_full_scale_survive(tmp_path: Path, ending: str) -> None:
    rate = 48_000
    tone = 1.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate, dtype=np.float64)
    sound = np.stack([tone, tone], axis=1).astype(np.float32)
    path = tmp_path / f"a.{ending}"
    if ending in ENCODERS:
        encoded(path, sound, rate=rate)
    else:
        written(path, sound, rate=rate, subtype="FLOAT" if ending == "wav" else None)
    samples, _ = decode(path)
    assert 1.3 < samples.max() < 1.6
    assert -1.6 < samples.min() < -1.3


def test_cover_art_is_left_out(tmp_path: Path) -> None:
    samples, truncated = streamed(encoded(tmp_path / "a.mp3", music(), cover=True))
    assert len(samples) == pytest.approx(36_000, abs=100)
    assert truncated is None


def test_chained_ogg_goes_on_at_another_rate_and_channel_count(tmp_path: Path) -> None:
    parts = [(44_100, 2), (22_050, 2), (22_050, 1)]
    paths = [
        written(tmp_path / f"{i}.ogg", music(2.0, rate=rate, channels=channels), rate=rate)
        for i, (rate, channels) in enumerate(parts)
    ]
    chain = tmp_path / "chain.ogg"
    chain.write_bytes(b"".join(path.read_bytes() for path in paths))
    samples, truncated = streamed(chain)
    assert len(samples) == pytest.approx(3 * 24_000, abs=300)
    assert truncated is None
    spectrum = np.abs(np.fft.rfft(samples[50_000:70_000]))  # the mono part: one tone at 440 Hz
    assert np.argmax(spectrum) * 12_000 / 20_000 == pytest.approx(440, abs=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [12_000, 44_100])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float, rate: int) -> None:
    sound = music(1.0, rate=rate)
    sound[5000, 0] = value
    path = written(tmp_path / "a.wav", sound, rate=rate, subtype="FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        decode(path)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("sound", [np.zeros((RATE, 2), np.float32), np.full((1, 2), 0.5, np.float32)])
def test_silence_and_one_sample_are_audio(tmp_path: Path, ending: str, sound: NDArray[np.float32]) -> None:
    samples, truncated = streamed(written(tmp_path / f"a.{ending}", sound))
    assert len(samples) >= 1
    assert truncated is None


NAMES = [
    "with space.ogg",
    "100% #1.ogg",
    "Überraschung 音楽.ogg",
    "-dash.ogg",
    "http:colon.ogg",
    "it's,[a];x=1.ogg",
    "a\\b.ogg",
]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"latin-\xe9.ogg")])
def test_names_are_taken_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("plain.ogg"), music(1.0)).rename(name)
    assert len(streamed(Path(name))[0]) == pytest.approx(12_000, abs=50)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9/a.ogg", "concat:a.ogg|b.ogg", "pipe:0", "-", "lavfi:sine", "a\0b"]
)
def test_urls_are_not_opened(uri: str) -> None:
    with pytest.raises(AudioError, match=r"no such file|cannot be read") as caught:
        open_audio(uri)
    assert caught.value.stage == "open"


def test_playlists_do_not_open_other_files(tmp_path: Path) -> None:
    target = encoded(tmp_path / "real.mp3", music(1.0))
    for text in (
        f"ffconcat version 1.0\nfile '{target.name}'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target.name}\n#EXT-X-ENDLIST\n",
    ):
        for ending in ("mp3", "m3u8", "ogg"):
            path = tmp_path / f"list.{ending}"
            path.write_text(text)
            with pytest.raises(AudioError):
                decode(path)


def bad_files(folder: Path) -> dict[str, Path]:
    whole = {
        ending: encoded(folder / f"w.{ending}", music(1.0)).read_bytes() for ending in ("mp3", "m4a", "flac")
    }
    whole["ogg"] = written(folder / "w.ogg", music(1.0)).read_bytes()
    whole["wav"] = written(folder / "w.wav", music(1.0)).read_bytes()
    contents = {
        "empty.mp3": b"",
        "text.mp3": b"This is a plain text, not music at all.\n" * 100,
        "text.ogg": b"This is a plain text.\n" * 10,
        "text.wav": b"This is a plain text.\n" * 10,
        "noise.raw": b"abc" * 1000,
        "header.ogg": whole["ogg"][:200],
        "header.flac": whole["flac"][:42],
        "header.wav": whole["wav"][:44],
        "header.mp3": b"ID3\x04\x00\x00\x00\x00\x00\x00",
        "noindex.m4a": whole["m4a"][: whole["m4a"].rindex(b"moov") - 4],
    }
    paths = {name: folder / name for name in contents}
    for name, content in contents.items():
        paths[name].write_bytes(content)
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux([*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode(None)])
    os.mkfifo(folder / "pipe.mp3")
    (folder / "folder.mp3").mkdir()
    others = ("video.mp4", "pipe.mp3", "folder.mp3", "missing.mp3")
    return paths | {name: folder / name for name in others}


def test_bad_files_say_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = {
        "empty.mp3": "empty",
        "video.mp4": "no audio stream",
        "pipe.mp3": "not a regular file",
        "folder.mp3": "directory",
        "missing.mp3": "no such file",
        "noindex.m4a": "moov",
        "header.wav": "no audio",
    }
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(AudioError) as caught:
            decode(path)
        reason = caught.value.reason
        assert words.get(name, "") in reason, name
        assert "\n" not in reason
        assert "Errno" not in reason
        assert "[" not in reason
        assert caught.value.uri == str(path)
        assert caught.value.stage in {"open", "decode"}
    assert capfd.readouterr().err == ""


def test_no_permission_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", music(0.1))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(AudioError, match="no permission"):
        open_audio(path)


def test_a_file_that_vanishes_after_opening(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mp3", music(0.5))
    with open_audio(path) as stream:
        path.unlink()
        with pytest.raises(AudioError, match="no such file"):
            list(stream)


@pytest.mark.parametrize("ending", ["mp3", "ogg", "flac", "m4a", "wav", "aif", "wma", "opus"])
def test_cut_file_keeps_what_decodes(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    rate = 48_000 if ending == "opus" else RATE
    write = encoded if ending in ENCODERS else written
    path = write(tmp_path / f"a.{ending}", music(6.0, rate=rate), rate=rate)
    content = path.read_bytes()
    if ending == "m4a":  # index first, as files for streaming have it
        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "b.m4a"), "w", options={"movflags": "faststart"}) as target,
        ):
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        content = (tmp_path / "b.m4a").read_bytes()
    whole, truncated = streamed(path)
    assert truncated is None
    for share in (0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        kept, truncated = streamed(path)
        assert truncated is not None, share
        assert "ends" in truncated
        assert "\n" not in truncated
        assert (share - 0.2) * len(whole) < len(kept) < (share + 0.06) * len(whole)
        same = len(kept) - 1500
        np.testing.assert_allclose(kept[:same], whole[:same], atol=1e-4)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", ["mp3", "ogg", "flac", "m4a", "wma", "opus"])
def test_damage_in_the_middle_is_stepped_over(
    tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rate = 48_000 if ending == "opus" else RATE
    write = encoded if ending in ENCODERS else written
    path = write(tmp_path / f"a.{ending}", music(8.0, rate=rate), rate=rate)
    whole, _ = streamed(path)
    content = bytearray(path.read_bytes())
    middle, hole = len(content) // 3, len(content) // 20
    content[middle : middle + hole] = np.random.default_rng(0).bytes(hole)
    path.write_bytes(content)
    kept, truncated = streamed(path)
    assert len(kept) > 0.7 * len(whole)  # a page of Opus is a second
    assert truncated is not None
    assert "middle" in truncated
    assert capfd.readouterr().err == ""
    early = int(len(whole) * 0.2)
    np.testing.assert_allclose(kept[:early], whole[:early], atol=1e-4)


def test_tags_after_the_music_are_no_damage(tmp_path: Path) -> None:
    content = encoded(tmp_path / "a.mp3", music()).read_bytes()
    whole, _ = decode(tmp_path / "a.mp3")
    ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0)
    for tail in (b"TAG" + bytes(125), ape + b"TAG" + bytes(125), bytes(4096)):
        path = tmp_path / "b.mp3"
        path.write_bytes(content + tail)
        samples, truncated = streamed(path)
        assert truncated is None, tail[:8]
        assert len(samples) == pytest.approx(
            len(whole), abs=100
        )  # FFmpeg distrusts the Xing header of the last


def test_broken_tags_do_not_hide_the_music(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", music(0.5))
    content = (
        path.read_bytes()
        + b"LIST"
        + struct.pack("<I", 18)
        + b"INFOINAM"
        + struct.pack("<I", 6)
        + b"\xff\xfe\xe9abc"
    )
    path.write_bytes(content)
    assert len(decode(path)[0]) == 6000


def test_wav_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", music(1.0))
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    samples, truncated = streamed(path)
    assert len(samples) == 12_000
    assert truncated is None


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = {}
    for seconds in (10, 120):
        path = written(tmp_path / f"{seconds}.wav", np.tile(music(5.0), (seconds // 5, 1)))
        found = []
        # What else runs in this process, such as threads of earlier tests, can only add: the least is ours.
        for _ in range(3):
            with open_audio(path) as stream:
                gc.collect()
                tracemalloc.start()
                bytes_read = sum(block.nbytes for block in stream)
                found.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        peaks[seconds] = min(found)
    assert peaks[120] < peaks[10] + bytes_read / 8


def handles(path: Path) -> int:
    """How often this process has a file open."""
    links = Path("/proc/self/fd").iterdir()
    found = 0
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # another thread's, closed meanwhile
            found += os.readlink(link) == str(path)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_leaving_early_closes_the_file(tmp_path: Path) -> None:
    for path in (written(tmp_path / "a.wav", music(10.0)), encoded(tmp_path / "a.mp3", music(10.0))):
        with open_audio(path) as stream:
            next(itertools.islice(stream, 1))
            assert handles(path) == 1
        assert handles(path) == 0


def test_sample_rate_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive"):
        open_audio(written(tmp_path / "a.wav", music(0.1)), sample_rate=0)
