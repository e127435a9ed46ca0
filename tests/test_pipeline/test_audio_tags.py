"""Tags of files written by FFmpeg, by libsndfile, and byte by byte."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile as sf
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio_tags import LONGEST, file_tags
from pipeline.decoding import decode

RATE = 48_000
SONG = {
    "title": "Täglich 夜",
    "artist": "Nina",
    "album": "Blue",
    "album_artist": "Various",
    "genre": "Rock",
    "date": "1999-05",
    "track": "3/9",
}
GAINS = {
    "REPLAYGAIN_TRACK_GAIN": "-6.50 dB",
    "REPLAYGAIN_TRACK_PEAK": "0.988553",
    "REPLAYGAIN_ALBUM_GAIN": "+1.25 dB",
    "REPLAYGAIN_ALBUM_PEAK": "1.02",
}
PARSED = {
    "replaygain_track_gain_db": -6.5,
    "replaygain_track_peak": 0.988553,
    "replaygain_album_gain_db": 1.25,
    "replaygain_album_peak": 1.02,
}


def noise() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((1, RATE // 2))).astype(np.float32)


def tags_of(path: Path) -> dict[str, Any]:
    samples, info = decode(path)
    assert len(samples) > 1000
    return dict(info.tags)


def write_with_ffmpeg(path: Path, codec: str, tags: dict[str, str], **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        container.metadata.update(tags)
        frame = av.AudioFrame.from_ndarray(noise(), format="fltp", layout="mono")
        frame.sample_rate = RATE
        size = stream.codec_context.frame_size or 1024
        cut = av.AudioResampler(format=stream.format.name, layout="mono", rate=RATE, frame_size=size)
        for piece in (*cut.resample(frame), *cut.resample(None), None):
            container.mux(stream.encode(piece))
    return path


def synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def id3v2(frames: list[tuple[bytes, bytes]]) -> bytes:
    """ID3v2.4 tag of frames in UTF-8, laid out as the standard says (id3.org, ID3v2.4.0 structure)."""
    body = b"".join(name + synchsafe(len(text) + 1) + b"\0\0\3" + text for name, text in frames)
    return b"ID3\4\0\0" + synchsafe(len(body)) + body


ID3 = id3v2(
    [
        (b"TIT2", "Täglich 夜".encode()),
        (b"TPE1", b"Nina"),
        (b"TALB", b"Blue"),
        (b"TPE2", b"Various"),
        (b"TCON", b"Rock"),
        (b"TDRC", b"1999-05"),
        (b"TRCK", b"3/9"),
        (b"TXXX", b"replaygain_track_gain\0-6.50 dB"),
        (b"TXXX", b"REPLAYGAIN_TRACK_PEAK\x000.988553"),
        (b"TXXX", b"REPLAYGAIN_ALBUM_GAIN\0+1.25 dB"),
        (b"TXXX", b"REPLAYGAIN_ALBUM_PEAK\x001.02"),
        (b"TXXX", b"private\0not ours"),
    ]
)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("song.opus", "libopus", {}),
        ("song.flac", "flac", {}),
        ("song.mp3", "libmp3lame", {}),
        ("song.mp4", "aac", {"movflags": "use_metadata_tags"}),
        ("song.mka", "libopus", {}),
        ("song.wv", "wavpack", {}),
        ("song.aiff", "pcm_s16be", {"write_id3v2": "1"}),
    ],
)
def test_every_tag_of_files_written_by_ffmpeg(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_with_ffmpeg(tmp_path / name, codec, {**SONG, **GAINS, "comment": "not taken"}, **options)
    assert tags_of(path) == {**SONG, **PARSED}


def test_m4a_has_itunes_names_and_wav_has_info_names(tmp_path: Path) -> None:
    assert tags_of(write_with_ffmpeg(tmp_path / "song.m4a", "aac", SONG)) == SONG
    wav = tags_of(write_with_ffmpeg(tmp_path / "song.wav", "pcm_s16le", SONG))
    assert wav == {key: text for key, text in SONG.items() if key != "album_artist"}  # INFO has no such name


@pytest.mark.parametrize("name", ["song.ogg", "song.flac", "song.mp3", "song.wav"])
def test_files_written_by_libsndfile(tmp_path: Path, name: str) -> None:
    with sf.SoundFile(tmp_path / name, "w", RATE, 1) as file:
        file.title, file.artist, file.album, file.genre = "Täglich", "Nina", "Blue", "Rock"
        file.date, file.tracknumber, file.comment = "1999", "3", "not taken"
        file.write(noise()[0])
    expected = {"title": "Täglich", "artist": "Nina", "album": "Blue", "genre": "Rock", "date": "1999"}
    assert tags_of(tmp_path / name) == {**expected, "track": "3"}


def test_itunes_freeform_gains(tmp_path: Path) -> None:
    def atom(name: bytes, *content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + sum(map(len, content)), name) + b"".join(content)

    path = write_with_ffmpeg(tmp_path / "song.m4a", "aac", {"title": "Blue"})
    content = path.read_bytes()
    freeform = atom(
        b"----",
        atom(b"mean", bytes(4), b"com.apple.iTunes"),
        atom(b"name", bytes(4), b"replaygain_track_gain"),
        atom(b"data", struct.pack(">II", 1, 0), b"-6.50 dB"),
    )
    # The index is the last atom, so only the sizes of the atoms around the new one change.
    place = content.index(b"ilst") - 4
    old_ilst = content[place : place + int.from_bytes(content[place : place + 4], "big")]
    content = content.replace(old_ilst, atom(b"ilst", old_ilst[8:], freeform))
    for name in (b"moov", b"udta", b"meta"):
        at = content.rindex(name) - 4
        size = int.from_bytes(content[at : at + 4], "big") + len(freeform)
        content = content[:at] + struct.pack(">I", size) + content[at + 4 :]
    path.write_bytes(content)
    assert tags_of(path) == {"title": "Blue", "replaygain_track_gain_db": -6.5}


def test_id3_by_hand_before_an_mp3(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    sf.write(path, noise()[0], RATE)
    path.write_bytes(ID3 + path.read_bytes())
    assert tags_of(path) == {**SONG, **PARSED}


def test_id3_by_hand_behind_the_samples_of_a_wav(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    sf.write(path, noise()[0], RATE)
    chunk = ID3 + bytes(len(ID3) % 2)
    content = path.read_bytes() + b"id3 " + struct.pack("<I", len(ID3)) + chunk
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert tags_of(path) == {**SONG, **PARSED}
    assert decode(path)[1].decoder == "soundfile"


def test_opus_gains_are_moved_to_the_reference_of_replaygain(tmp_path: Path) -> None:
    # RFC 7845: Q7.8, so -1536 is -6 dB to -23 LUFS, and -1 dB to -18 LUFS.
    tags = {"R128_TRACK_GAIN": "-1536", "R128_ALBUM_GAIN": "128", "REPLAYGAIN_TRACK_GAIN": "9 dB"}
    found = tags_of(write_with_ffmpeg(tmp_path / "song.opus", "libopus", tags))
    assert found == {"replaygain_track_gain_db": -1.0, "replaygain_album_gain_db": 5.5}


@pytest.mark.parametrize(
    "text", ["", "loud", "nan", "inf dB", "1e999", "--3", "1_0", "٣ dB", "-6.5 dB dB", "9" * 400]
)
def test_rubbish_gains_are_left_out(text: str) -> None:
    assert (
        file_tags({"REPLAYGAIN_TRACK_GAIN": text, "replaygain_track_peak": text, "R128_TRACK_GAIN": text})
        == {}
    )


@pytest.mark.parametrize(("text", "number"), [("-6,5 dB", -6.5), (" +3DB ", 3.0), (".5", 0.5), ("1e-1", 0.1)])
def test_gains_as_programs_write_them(text: str, number: float) -> None:
    assert file_tags({"ReplayGain_Track_Gain": text}) == {"replaygain_track_gain_db": number}


def test_out_of_range_and_negative_peaks_are_left_out() -> None:
    assert file_tags({"R128_TRACK_GAIN": "32768", "replaygain_track_peak": "-0.5"}) == {}
    assert file_tags({"R128_TRACK_GAIN": "-32768"}) == {"replaygain_track_gain_db": -123.0}


def test_control_characters_and_length() -> None:
    assert file_tags({"title": "\x1b[31mRed\r\n\0rum\x9b"}) == {"title": "[31mRed rum"}
    assert file_tags({"title": "x" * 10_000})["title"] == "x" * LONGEST
    assert file_tags({"title": " \0\n "}, {"title": "Second"}) == {"title": "Second"}


@given(
    st.dictionaries(
        st.sampled_from(["title", "Artist", "R128_TRACK_GAIN", "replaygain_track_gain", "TRACK"]), st.text()
    )
)
def test_any_tags_become_clean_json(raw: dict[str, str]) -> None:
    tags = file_tags(raw)
    assert json.loads(json.dumps(tags, allow_nan=False)) == tags
    for value in tags.values():
        if isinstance(value, str):
            value.encode()
            assert value == value.strip() != ""
            assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value)
            assert len(value) <= LONGEST
        else:
            assert math.isfinite(value)


def test_damaged_tags_never_fail_a_song(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    sf.write(path, noise()[0], RATE)
    audio = path.read_bytes()
    broken = bytearray(ID3.replace("夜".encode(), b"\xff\xfe\xfd"))
    broken[14:18] = b"\x7f\x7f\x7f\x7f"  # the first frame claims 256 MB
    for tag in (ID3.replace("夜".encode(), b"\xff\xfe\xfd"), bytes(broken)):
        path.write_bytes(tag + audio)
        assert "夜" not in tags_of(path).get("title", "")


def test_tags_are_in_the_index(empty_project: Any) -> None:
    write_with_ffmpeg(empty_project.music / "song.opus", "libopus", {"title": "夜", "R128_TRACK_GAIN": "0"})
    empty_project.add_song("plain.wav")
    empty_project.extract()
    table = DeltaTable(empty_project.store_folder / "tracks").to_pandas().set_index("track_id")
    assert table.at["demo/song.opus", "file_tags"] == '{"replaygain_track_gain_db": 5.0, "title": "夜"}'
    assert table["file_tags"].isna()["demo/plain.wav"]
