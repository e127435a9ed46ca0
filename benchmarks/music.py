"""Music for the benchmarks: five Debian packages of freely licensed game music, about 7.9 hours.

    python benchmarks/music.py FOLDER --as-mp3 30

Songs lie in ``FOLDER/<package>/``: every distinct Ogg Vorbis, Opus and MP3 file of at least 20 s
(shorter ones are sound effects). The packages hold but three MP3 files, so ``--as-mp3`` replaces some
songs by MP3 encodings of themselves. Nothing is fetched or encoded twice: a folder that has music is
only counted.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

PACKAGES = (
    "singularity-music",
    "wesnoth-1.16-music",
    "warzone2100-music",
    "hyperrogue-music",
    "asc-music",
)
SUFFIXES = (".ogg", ".opus", ".mp3")
MIN_DURATION_S = 20.0
MP3_BIT_RATE = 192_000


@dataclass(frozen=True, slots=True)
class Song:
    """One audio file and what its header says.

    Parameters
    ----------
    path
        The file.
    codec
        ``vorbis``, ``opus``, ``mp3``, ``flac`` and so on.
    duration_s
        Seconds.
    size
        Bytes.
    """

    path: Path
    codec: str
    duration_s: float
    size: int


def song(path: Path) -> Song | None:
    """Return what a file holds; None if that is no audio."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            if container.duration is None:
                return None
            duration_s = container.duration / 1e6
            codec = stream.codec_context.codec.canonical_name
    except (av.FFmpegError, IndexError):
        return None
    return Song(path, codec, duration_s, path.stat().st_size)


def songs(folder: Path, *, suffixes: Sequence[str] = SUFFIXES, min_s: float = 0.0) -> list[Song]:
    """Return the distinct audio files below a folder, by path; links are not followed.

    Parameters
    ----------
    folder
        Looked through at any depth.
    suffixes
        Endings of audio files, lower case.
    min_s
        Shorter files are left out.
    """
    found: dict[str, Song] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.is_symlink() or not path.is_file():
            continue
        one = song(path)
        if one is None or one.duration_s < min_s:
            continue
        with path.open("rb") as file:
            found.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), one)
    return list(found.values())


def codec_table(collection: Iterable[Song]) -> str:
    """Return a Markdown table of files, hours and megabytes by codec."""
    by_codec: dict[str, list[Song]] = defaultdict(list)
    for one in collection:
        by_codec[one.codec].append(one)
        by_codec["all"].append(one)
    lines = ["| codec | files | hours | MB |", "|---|---:|---:|---:|"]
    for codec, members in sorted(by_codec.items(), key=lambda item: (item[0] == "all", item[0])):
        hours = sum(one.duration_s for one in members) / 3600
        megabytes = sum(one.size for one in members) / 1e6
        lines.append(f"| {codec} | {len(members)} | {hours:.2f} | {megabytes:.0f} |")
    return "\n".join(lines)


def fetch(packages: Sequence[str], folder: Path) -> list[str]:
    """Download and unpack Debian packages into ``folder/<package>``; return those that could be had.

    Raises
    ------
    SystemExit
        If this machine has no apt, or it knows none of the packages.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(
            f"music.py: {' and '.join(missing)} not found. Run on Debian or Ubuntu, or unpack "
            f"{', '.join(packages)} elsewhere and name that folder with --unpacked."
        )
    fetched = []
    for package in packages:
        print(f"fetching {package}", flush=True)
        before = set(folder.glob("*.deb"))
        done = subprocess.run(
            ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False
        )
        archives = sorted(set(folder.glob("*.deb")) - before)
        if done.returncode or not archives:
            print(f"  left out: {done.stderr.strip().splitlines()[-1:] or 'nothing came'}", file=sys.stderr)
            continue
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(folder / package)], check=True)
        archives[0].unlink()
        fetched.append(package)
    if not fetched:
        raise SystemExit("music.py: apt has none of the packages. Run `apt-get update` as root first.")
    return fetched


def collect(unpacked: Path, folder: Path, *, n_as_mp3: int = 0) -> list[Song]:
    """Copy the music of unpacked packages to ``folder/<package>/``.

    Parameters
    ----------
    unpacked
        A folder a package.
    folder
        Where the music goes.
    n_as_mp3
        This many songs, evenly spaced over all, are encoded as MP3 instead of copied.
    """
    sources = songs(unpacked, min_s=MIN_DURATION_S)
    others = [one for one in sources if one.codec != "mp3"]
    n_as_mp3 = min(n_as_mp3, len(others))
    to_encode = {others[i * len(others) // n_as_mp3].path for i in range(n_as_mp3)}
    taken: set[Path] = set()
    for one in sources:
        relative = one.path.relative_to(unpacked)
        target = folder / relative.parts[0] / relative.name
        if one.path in to_encode:
            target = target.with_suffix(".mp3")
        while target in taken:
            target = target.with_stem(f"{target.stem}+")
        taken.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if one.path in to_encode:
            encode_mp3(one.path, target)
        else:
            shutil.copyfile(one.path, target)
    return songs(folder)


def encode_mp3(source: Path, target: Path) -> None:
    """Encode a file's first audio stream as MP3 (LAME, 192 kbit/s), at its own rate and channels.

    Raises
    ------
    SystemExit
        If this PyAV was built without LAME.
    """
    if "libmp3lame" not in av.codecs_available:
        raise SystemExit("music.py: this PyAV cannot encode MP3. Leave --as-mp3 out.")
    partial = target.with_suffix(".partial")
    with av.open(str(source)) as reading, av.open(str(partial), "w", format="mp3") as writing:
        stream = reading.streams.audio[0]
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        encoder = writing.add_stream("libmp3lame", rate=stream.codec_context.sample_rate, layout=layout)
        encoder.bit_rate = MP3_BIT_RATE
        for frame in reading.decode(stream):
            frame.pts = None
            writing.mux(encoder.encode(frame))
        writing.mux(encoder.encode(None))
    os.replace(partial, target)


def main() -> None:
    """Fetch, collect, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the music goes")
    parser.add_argument(
        "--as-mp3", type=int, default=0, metavar="N", help="replace N songs by MP3 encodings of themselves"
    )
    parser.add_argument(
        "--unpacked", type=Path, metavar="DIR", help="packages unpacked before, a folder each: fetch nothing"
    )
    options = parser.parse_args()
    collection = songs(options.folder)
    if collection:
        print(f"{options.folder} has music already; delete it to begin anew.\n")
    else:
        options.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder.parent, prefix=".music-") as scratch:
            unpacked, partial = options.unpacked or Path(scratch, "unpacked"), Path(scratch, "music")
            if options.unpacked is None:
                Path(scratch).chmod(0o755)  # apt's own user writes below it
                unpacked.mkdir()
                fetch(PACKAGES, unpacked)
            partial.mkdir()
            collection = collect(unpacked, partial, n_as_mp3=options.as_mp3)
            partial.rename(options.folder)  # a run that was broken off leaves nothing to be taken for whole
        if options.as_mp3:
            print(f"{options.as_mp3} songs were re-encoded as MP3 ({MP3_BIT_RATE // 1000} kbit/s, LAME).\n")
    if not collection:
        raise SystemExit(f"music.py: no audio files of at least {MIN_DURATION_S:.0f} s were found.")
    print(codec_table(collection))


if __name__ == "__main__":
    main()
