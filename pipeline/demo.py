"""``make demo``: the main job on real music, start to end.

python -m pipeline.demo demo
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "singularity-music"
CATALOG = Path("catalog.yaml")


def fetch_music(folder: Path) -> str:
    """Put music into `folder` and say where it comes from.

    Debian's singularity-music (16 songs, 64 min, CC-BY-SA 3.0) where apt can get it, else songs
    that this project makes itself.
    """
    if folder.exists():
        return "what an earlier demo fetched"
    draft = folder.with_name(f".{folder.name}")  # so that a fetch cut short is not taken for complete
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if shutil.which("apt-get") and shutil.which("dpkg-deb") and _fetch_debian(draft):
        source = f"Debian's {PACKAGE} (CC-BY-SA 3.0)"
    else:
        from pipeline.sample import write_sample_collection

        write_sample_collection(draft, n_songs=16, seed=0)
        source = "songs made by this project (no Debian package archive here)"
    draft.rename(folder)
    return source


def _fetch_debian(folder: Path) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)  # noqa: S103  # apt's own user writes into it
        download = ["apt-get", "download", PACKAGE]
        if not _succeeds(download, scratch):
            if os.geteuid() != 0:  # a package list that was never fetched needs root to fetch
                return False
            if not (_succeeds(["apt-get", "update"], scratch) and _succeeds(download, scratch)):
                return False
        archives = sorted(Path(scratch).glob("*.deb"))
        if not archives or not _succeeds(["dpkg-deb", "-x", str(archives[0]), "unpacked"], scratch):
            return False
        songs = [path for path in Path(scratch, "unpacked").rglob("*.ogg") if path.is_file()]
        for song in songs:
            shutil.copyfile(song, folder / song.name)
        return bool(songs)


def _succeeds(command: list[str], folder: str) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0  # noqa: S603


def _run(*arguments: str) -> None:
    print(f"\n$ mirstore {' '.join(f'{a!r}' if ' ' in a else a for a in arguments)}", flush=True)  # noqa: T201
    subprocess.run([Path(sys.executable).with_name("mirstore"), *arguments], check=True)  # noqa: S603


def main(folder: Path) -> None:
    """Fetch music, extract, extract again, and look at what is there."""
    print(f"music: {fetch_music(folder / 'music')}", flush=True)  # noqa: T201
    for arguments in (("extract",), ("extract",), ("status",)):
        _run(*arguments)
    from pipeline.store.reading import FeatureStore

    tracks = FeatureStore(CATALOG).tracks.index
    track = random.Random(7).choice(list(tracks))  # noqa: S311
    _run("show", track, "-o", str(folder / "page.png"))
    _run("query", track)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
