"""How fast extraction is, and how much memory it takes: ratios of runs that take turns on one machine.

    python benchmarks/music.py music --as-mp3 30
    python benchmarks/extract.py --music music --out results.json --rounds 5

Parts, to be chosen with ``--parts``:

    a  the librosa + joblib + torch script (baselines/librosa_joblib.py)
    b  bare decoding and resampling (baselines/bare_decode.py)
    c  mirstore: audio, log-mel, MFCC, embeddings
    d  mirstore without embeddings
    e  as c, with one worker
    f  a second run over at least 200 unchanged tracks
    g  peak memory of a worker: a long track against a short one

In each round, a to e run once, in an order that rotates. Every run starts in an empty folder, after
what earlier runs wrote has reached the disk and has been deleted; all music is read once before, so
that it comes from the page cache. Prints Markdown; --out gets every figure of every run.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from music import Song, codec_table, songs
from report import NAMES, Figures, markdown, ratios

BASELINES = Path(__file__).resolve().parent / "baselines"
FEATURES: dict[str, dict[str, Any]] = {
    "audio": {"kind": "audio", "sample_rate": 12000, "dtype": "int16"},
    "logmel": {"kind": "log_mel", "from": "audio", "dtype": "float16"},
    "mfcc": {"kind": "mfcc", "from": "logmel", "n_mfcc": 90, "dtype": "float16"},
    "embedding": {"kind": "cnn", "from": "logmel", "variant": "thesis", "weights": "random:0"},
}
LIBRARIES = (
    "mirstore numpy scipy librosa soxr av soundfile torch joblib dask distributed zarr numcodecs".split()
)
MUSIC_IN_MEMORY_S = 300


class Bench:
    """The runs, and the scratch folder they share.

    Parameters
    ----------
    scratch
        Empty folder; what a run writes is deleted when it ends.
    collection
        The music.
    workers
        Processes of every run but those that say otherwise.
    precision
        Of mirstore's network.
    """

    def __init__(self, scratch: Path, collection: Sequence[Song], *, workers: int, precision: str) -> None:
        self.scratch = scratch
        self.workers = workers
        self.features = {**FEATURES, "embedding": {**FEATURES["embedding"], "precision": precision}}
        self.music = scratch / "music"
        by_size = sorted(collection, key=lambda one: -one.size)
        self.files = linked((one.path for one in by_size), self.music)
        self.filelist = scratch / "files.txt"
        self.filelist.write_text("".join(f"{path}\n" for path in self.files), "utf-8")

    def catalog(self, folder: Path, music: Path) -> Path:
        """Write a catalog whose store lies next to it."""
        path = folder / "catalog.yaml"
        collections = {"bench": {"path": str(music)}}
        catalog = {"version": 1, "store": "./store", "collections": collections, "features": self.features}
        path.write_text(json.dumps(catalog), "utf-8")  # JSON is YAML
        return path

    def mirstore(self, *arguments: str, music: Path | None = None, workers: int | None = None) -> Figures:
        """Extract into a new store."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            catalog = self.catalog(Path(folder), music or self.music)
            return self.mirstore_into(catalog, *arguments, workers=workers)

    def mirstore_into(self, catalog: Path, *arguments: str, workers: int | None = None) -> Figures:
        """Extract into the store of a catalog."""
        figures = timed(extract_command(catalog, *arguments, "--workers", str(workers or self.workers)))
        if figures["failures"]:
            raise SystemExit(f"extract.py: {figures['failures']} songs failed. Leave them out: {self.music}")
        return figures

    def baseline(self) -> Figures:
        """Run the librosa script."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            return timed(python("librosa_joblib.py", self.filelist, folder, "--jobs", self.workers))

    def bare(self) -> Figures:
        """Decode and resample, with the allocator as mirstore's workers have it."""
        from pipeline.cluster import WORKER_ENVIRONMENT

        return timed(python("bare_decode.py", self.filelist, "--jobs", self.workers), WORKER_ENVIRONMENT)

    def runs(self) -> dict[str, Callable[[], Figures]]:
        """Return the runs of a round by letter."""
        return {
            "a": self.baseline,
            "b": self.bare,
            "c": self.mirstore,
            "d": lambda: self.mirstore("--feature", "mfcc"),
            "e": lambda: self.mirstore(workers=1),
        }

    def second_run(self, rounds: int, min_tracks: int) -> Figures:
        """Extract some tracks, or all if they are more, then again and again with nothing to do."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            music = Path(folder, "tracks")
            n_tracks = max(min_tracks, len(self.files))
            linked(islice(cycle(self.files), n_tracks), music)
            catalog = self.catalog(Path(folder), music)
            first = self.mirstore_into(catalog)
            again = [self.mirstore_into(catalog) for _ in range(rounds)]
            if any(run["songs"] or run["computed"] for run in again):
                raise SystemExit("extract.py: the second run had something to do.")
            return {
                "tracks": n_tracks,
                "first_s": first["wall_s"],
                "wall_s": [run["wall_s"] for run in again],
                **traced_reads(extract_command(catalog), music, Path(folder)),
            }

    def memory(self, rounds: int, minutes: Sequence[float]) -> Figures:
        """Extract one long and one short track of the same music, a store and a worker each.

        Also without embeddings: loading a network may need more than any track, and hide its growth.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            peaks: dict[str, dict[str, list[int]]] = {"c": {}, "d": {}}
            for length_min in minutes:
                music = Path(folder, f"{length_min:g}")
                music.mkdir()
                write_track(music / "track.flac", self.files, length_min * 60)
                for letter, arguments in (("c", ()), ("d", ("--feature", "mfcc"))):
                    runs = [self.mirstore(*arguments, music=music, workers=1) for _ in range(rounds)]
                    peaks[letter][music.name] = [run["worker_peak_bytes"] for run in runs]
                shutil.rmtree(music)
            return {"minutes": [f"{length_min:g}" for length_min in minutes], "peak_bytes": peaks}


def linked(paths: Iterator[Path] | Sequence[Path], folder: Path) -> list[Path]:
    """Link files into a new folder under numbers, or copy them where links do not reach."""
    folder.mkdir()
    made = []
    for i, path in enumerate(paths):
        made.append(folder / f"{i:04d}{path.suffix}")
        try:
            os.link(path, made[-1])
        except OSError:
            shutil.copyfile(path, made[-1])
    return made


def python(script: str, *arguments: object) -> list[str]:
    """Return the command of a baseline."""
    return [sys.executable, str(BASELINES / script), *map(str, arguments)]


def extract_command(catalog: Path, *arguments: str) -> list[str]:
    """Return a ``mirstore extract`` of the environment that runs this file."""
    mirstore = Path(sys.executable).with_name("mirstore")
    return [str(mirstore), "extract", "--json", "--catalog", str(catalog), *arguments]


def timed(command: Sequence[str], environment: dict[str, str] | None = None) -> Figures:
    """Run a command and return the JSON it prints, with the seconds it took from start to exit, and of CPU."""
    os.sync()  # what the run before wrote must not reach the disk at this one's expense
    cpu_s, begun = _cpu_s_of_children(), time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    wall_s = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"extract.py: {' '.join(command)} exited {done.returncode}:\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout), "wall_s": wall_s, "cpu_s": _cpu_s_of_children() - cpu_s}


def _cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def traced_reads(command: Sequence[str], music: Path, folder: Path) -> Figures:
    """Run a command under strace; return how many files of a folder it opened and the bytes it read."""
    if shutil.which("strace") is None:
        return {"files_opened": None, "bytes_read": None, "not_traced": "no strace here"}
    calls = "trace=open,openat,openat2,read,pread64,readv,preadv,preadv2,mmap,sendfile,copy_file_range"
    # A file a process (-ff), so that no call is torn in two; -y writes the path next to a descriptor.
    strace = ["strace", "-ff", "-y", "-s", "0", "-e", calls, "-o", str(folder / "trace")]
    done = subprocess.run([*strace, *command], capture_output=True, check=False)
    if done.returncode:
        return {"files_opened": None, "bytes_read": None, "not_traced": "strace may not trace here"}
    opened: set[str] = set()
    n_bytes = 0
    track = re.escape(str(music)) + r"/[^\">]+"
    for trace in folder.glob("trace.*"):
        for line in trace.read_text("utf-8", "replace").splitlines():
            if (found := re.search(track, line)) is None:
                continue
            call, _, result = line.partition("(")[0], *line.rpartition(" = ")[1:]
            if call.startswith("open") and not result.startswith("-"):
                opened.add(found[0])
            elif call == "mmap":
                n_bytes += int(line.split(",")[1])
            elif result.isdigit():
                n_bytes += int(result)
    return {"files_opened": len(opened), "bytes_read": n_bytes}


def write_track(path: Path, files: Sequence[Path], duration_s: float) -> None:
    """Write a FLAC file of some minutes of decoded music, repeated until it is long enough."""
    forms = {file: soundfile.info(file) for file in files}
    hours = Counter[tuple[int, int]]()
    for info in forms.values():
        hours[info.samplerate, info.channels] += info.duration
    (rate, channels), _ = hours.most_common(1)[0]
    blocks: list[np.ndarray] = []
    for file, info in forms.items():
        if (info.samplerate, info.channels) == (rate, channels):
            blocks += soundfile.blocks(file, 65_536, dtype="float32", always_2d=True)
        if sum(map(len, blocks)) >= MUSIC_IN_MEMORY_S * rate:
            break
    left = round(duration_s * rate)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", compression_level=0.0) as track:
        for block in cycle(blocks):
            if left <= 0:
                break
            track.write(block[:left])
            left -= len(block)


def chosen(collection: Sequence[Song], minutes: float | None) -> list[Song]:
    """Return songs of about that many minutes in all, the codecs in turn; all songs without a limit."""
    if minutes is None:
        return list(collection)
    by_codec: dict[str, list[Song]] = defaultdict(list)
    for i in np.random.default_rng(0).permutation(len(collection)):
        by_codec[collection[i].codec].append(collection[i])
    picked: list[Song] = []
    for depth in range(max(map(len, by_codec.values()))):
        for members in by_codec.values():
            if depth < len(members) and sum(one.duration_s for one in picked) < minutes * 60:
                picked.append(members[depth])
    return picked


def machine(precision: str) -> Figures:
    """Return hardware and versions."""
    from features.inference import Embedder
    from features.weights import load_weights

    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    embedder = Embedder(load_weights("random:0", "thesis"), precision=precision, device="cpu")
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES}
        | {"libsndfile": soundfile.__libsndfile_version__},
        "mirstore_network": embedder.precision,
        "baseline_network": "float32",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--music", type=Path, required=True, help="folder of Ogg, Opus and MP3 files")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for every figure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", default="a,b,c,d,e,f,g", help="letters, with commas between them")
    parser.add_argument("--skip-baseline", action="store_true", help="leave part a out")
    parser.add_argument("--limit-minutes", type=float, metavar="N", help="only some music, N minutes of it")
    parser.add_argument(
        "--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="the CNN's"
    )
    parser.add_argument(
        "--memory-minutes",
        type=float,
        nargs=2,
        default=[120.0, 5.0],
        metavar=("LONG", "SHORT"),
        help="part g",
    )
    parser.add_argument("--second-run-tracks", type=int, default=200, metavar="N", help="part f: at least N")
    parser.add_argument("--scratch", type=Path, help="where the runs write; default: the system's place")
    options = parser.parse_args()
    options.parts = set(options.parts.split(",")) - ({"a"} if options.skip_baseline else set())
    if unknown := options.parts - set("abcdefg"):
        parser.error(f"--parts takes letters from a to g, got {', '.join(sorted(unknown))}.")
    return options


def main() -> None:
    """Run the parts asked for."""
    options = _options()
    collection = chosen(songs(options.music), options.limit_minutes)
    if not collection:
        raise SystemExit(f"extract.py: no music below {options.music}. Fetch some: benchmarks/music.py.")
    results: Figures = {
        "machine": machine(options.precision),
        "workers": options.workers,
        "music": codec_table(collection),
        "rounds": [],
        "ratios": {},
    }

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        options.out.write_text(json.dumps(results, indent=1), "utf-8")

    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bench = Bench(Path(scratch), collection, workers=options.workers, precision=options.precision)
        for path in bench.files:
            path.read_bytes()
        runs = {letter: run for letter, run in bench.runs().items() if letter in options.parts}
        for turn in range(options.rounds if runs else 0):
            figures: dict[str, Figures] = {}
            results["rounds"].append(figures)
            for letter in islice(cycle(runs), turn, turn + len(runs)):
                figures[letter] = runs[letter]()
                say(f"round {turn + 1}, {NAMES[letter]}: {figures[letter]['wall_s']:.2f} s")
            lengths = [run["audio_s"] for run in figures.values()]
            if max(lengths) > 1.001 * min(lengths):
                raise SystemExit(f"extract.py: the runs decoded different amounts of audio: {lengths} s.")
        results["ratios"] = ratios(results["rounds"])
        if "f" in options.parts:
            results["second_run"] = bench.second_run(options.rounds, options.second_run_tracks)
            say("second run: done")
        if "g" in options.parts:
            results["memory"] = bench.memory(options.rounds, options.memory_minutes)
            say("memory: done")
    say("")
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
