"""How fast a store is read, and in how much memory: ratios of runs that take turns on one machine.

    python benchmarks/reading.py --store catalog.yaml --out reading.json

Without ``--store`` it makes songs and extracts them first. In each round every run reads the same
log-mel twice, in an order that rotates. The second time counts: then all comes from the page cache,
and no run pays for memory that another one gave back and the system has to make again. Seconds of
CPU stand beside the seconds, because zarr-python, zarrs and the readers decode with several threads.

Also: how long reading one track at random takes, and the peak memory of a shuffled epoch by
``buffer_bytes``, each in a process of its own. Prints Markdown; --out gets every figure.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from report import Figures, spread

from pipeline.store.chunk_table import read_chunks
from pipeline.store.reading import FeatureStore
from pipeline.store.stored_feature import StoredFeature
from training import ChunkReader

SEQUENTIAL, SEQUENTIAL_32, SHUFFLED, SHUFFLED_32 = (
    "sequential, float16", "sequential, float32", "shuffled, float16", "shuffled, float32",
)  # fmt: skip
ZARR, ZARR_1, ZARRS, SHARDS = "zarr-python", "zarr-python, 1 thread", "zarrs", "mirstore's shard reader"
RATIOS = [
    (ours, raw)
    for ours in (SEQUENTIAL, SEQUENTIAL_32, SHUFFLED, SHUFFLED_32)
    for raw in (ZARR, ZARR_1, ZARRS)
]
PIPELINES: dict[str, dict[str, Any]] = {
    ZARR: {},
    ZARR_1: {"threading.max_workers": 1, "async.concurrency": 1},
    ZARRS: {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"},
}


class Bench:
    """The runs over one feature.

    Parameters
    ----------
    feature
        What is read.
    batch_size, buffer_bytes
        Of the training reader.
    """

    def __init__(self, feature: StoredFeature, *, batch_size: int, buffer_bytes: int) -> None:
        self.feature = feature
        self.batch_size = batch_size
        self.buffer_bytes = buffer_bytes
        self.table = feature.chunks
        self.n_bytes = len(self.table) * feature.rows.row_bytes

    def runs(self) -> dict[str, Callable[[], int]]:
        """Return what reads everything once and returns the rows it read, by name."""
        return {
            SEQUENTIAL: lambda: self.read(shuffle=False, as_stored=True),
            SEQUENTIAL_32: lambda: self.read(shuffle=False, as_stored=False),
            SHUFFLED: lambda: self.read(shuffle=True, as_stored=True),
            SHUFFLED_32: lambda: self.read(shuffle=True, as_stored=False),
            SHARDS: self.shards,
            **{name: lambda name=name: self.zarr(name) for name in PIPELINES},
        }

    def reader(self, *, shuffle: bool, as_stored: bool) -> ChunkReader:
        """Return the training reader."""
        return ChunkReader(
            self.feature.store, self.feature.name, batch_size=self.batch_size, shuffle=shuffle,
            as_stored=as_stored, buffer_bytes=self.buffer_bytes,
        )  # fmt: skip

    def read(self, *, shuffle: bool, as_stored: bool) -> int:
        """Read an epoch."""
        reader = self.reader(shuffle=shuffle, as_stored=as_stored)
        return sum(len(batch[self.feature.name]) for batch in reader)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Return the stretches of the table that lie in one shard."""
        rows_per_shard = self.feature.rows.reader(self.table.parts[0]).rows_per_shard
        return pairwise(self.table.blocks(rows_per_shard).tolist())

    def shards(self) -> int:
        """Read shard after shard with nothing around it."""
        return sum(len(read_chunks(self.feature.rows, self.table, *stretch)) for stretch in self.stretches())

    def zarr(self, pipeline: str) -> int:
        """Read shard after shard with zarr-python or zarrs."""
        count = 0
        with zarr.config.set(PIPELINES[pipeline]):
            arrays: dict[str, Any] = {}
            for first, last in self.stretches():
                part = self.table.parts[self.table.part[first]]
                if part not in arrays:
                    arrays[part] = self.array(part)
                # What zarrs decodes as a whole it also checks as a whole.
                count += len(arrays[part][int(self.table.row[first]) : int(self.table.row[last - 1]) + 1])
        return count

    def array(self, part: str) -> Any:
        """Open an array of a part with zarr-python, under the pipeline that is configured."""
        rows = self.feature.rows
        return zarr.open_array(rows.location.zarr(f"parts/{part}/{rows.arrays[part]}"), mode="r")

    def tracks(self, n_reads: int) -> Figures:
        """Return the median milliseconds of reading one track, chosen at random."""
        spans = self.feature.store.spans
        chosen = np.random.default_rng(0).choice(len(spans), n_reads)
        arrays = {part: self.array(part) for part in self.table.parts}
        took: dict[str, list[float]] = {"mirstore": [], ZARR: []}
        for number in chosen:
            part, start = spans.part[number], int(spans.row_start[number])
            stop = start + int(spans.n_chunks[number])
            for name, read in (
                ("mirstore", lambda number=number: self.feature.stored(spans.track_ids[number])),
                (ZARR, lambda part=part, start=start, stop=stop: arrays[part][start:stop]),
            ):
                begun = time.perf_counter()
                read()
                took[name].append((time.perf_counter() - begun) * 1e3)
        ratio = [theirs / ours for ours, theirs in zip(took["mirstore"], took[ZARR], strict=True)]
        return {"ms": {name: spread(times) for name, times in took.items()}, "ratio": spread(ratio)}


def timed_again(run: Callable[[], int], n_rows: int) -> Figures:
    """Run it twice; return seconds and seconds of CPU of the second, all threads of this process together."""
    run()
    cpu_s, begun = time.process_time(), time.perf_counter()
    read = run()
    figures = {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu_s}
    if read != n_rows:
        raise SystemExit(f"reading.py: read {read} rows, expected {n_rows}.")
    return figures


def peak_bytes() -> int:
    """Return the most memory this process has had in use."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def growth(place: str, feature: str, batch_size: int, buffer_bytes: int) -> Figures:
    """Read a shuffled epoch; return by how much the peak of this process grew."""
    store = FeatureStore(place)
    one = store.select(track_ids=store.spans.track_ids[:1])
    # What libraries set up when first used is not the buffer's.
    for _ in Bench(one[feature], batch_size=1, buffer_bytes=buffer_bytes).reader(
        shuffle=True, as_stored=False
    ):
        pass
    bench = Bench(store[feature], batch_size=batch_size, buffer_bytes=buffer_bytes)
    reader = bench.reader(shuffle=True, as_stored=False)
    before = peak_bytes()
    for _ in reader:
        pass
    return {"buffer_bytes": buffer_bytes, "capacity": reader.capacity, "growth_bytes": peak_bytes() - before}


def made_store(folder: Path, minutes: float) -> str:
    """Write songs, extract them, and return their catalog."""
    from pipeline import extract
    from pipeline.sample import write_sample_collection

    n_songs = max(2, round(minutes / 2))
    write_sample_collection(folder / "music", n_songs=n_songs, duration_s=minutes * 60 / n_songs)
    features = {"audio": {"kind": "audio"}, "logmel": {"kind": "log_mel", "from": "audio"}}
    catalog = {
        "version": 1, "store": "./store", "collections": {"bench": {"path": "./music"}}, "features": features,
    }  # fmt: skip
    path = folder / "catalog.yaml"
    path.write_text(json.dumps(catalog), "utf-8")  # JSON is YAML
    extract(path)
    return str(path)


def markdown(results: Figures) -> Iterator[str]:
    """Yield the lines of the report."""
    yield (
        f"{results['cores']} cores; {results['rows']} chunks of {results['feature']}, "
        f"{results['bytes'] / 1e6:.0f} MB decoded; batches of {results['batch_size']}. "
        f"Medians of {len(results['rounds'])} rounds.\n"
    )
    yield "| read | s | CPU s | MB/s | MB per CPU s |\n|---|---:|---:|---:|---:|"
    for name in results["rounds"][0]:
        wall_s, cpu_s = (
            statistics.median(turn[name][key] for turn in results["rounds"]) for key in ("wall_s", "cpu_s")
        )
        rates = f"{results['bytes'] / 1e6 / wall_s:.0f} | {results['bytes'] / 1e6 / cpu_s:.0f}"
        yield f"| {name} | {wall_s:.3f} | {cpu_s:.3f} | {rates} |"
    yield "\n| ratio of speeds within a round | min | median | max | per CPU second |\n|---|---:|---:|---:|---:|"
    for name, of in results["ratios"].items():
        wall = f"{of['wall_s']['min']:.2f} | **{of['wall_s']['median']:.2f}** | {of['wall_s']['max']:.2f}"
        yield f"| {name} | {wall} | {of['cpu_s']['median']:.2f} |"
    times = {name: f"{ms['median']:.2f} ms" for name, ms in results["tracks"]["ms"].items()}
    yield (
        f"\nOne track at random: {times['mirstore']} (mirstore), {times[ZARR]} (zarr-python); "
        f"paired, {results['tracks']['ratio']['median']:.1f} times faster."
    )
    yield "\n| buffer_bytes, MiB | rows | growth of the peak, MiB |\n|---:|---:|---:|"
    for run in results["memory"]:
        sizes = f"{run['buffer_bytes'] / 2**20:.0f} | {run['capacity']} | {run['growth_bytes'] / 2**20:.0f}"
        yield f"| {sizes} |"


def measured(place: str, options: argparse.Namespace) -> Figures:
    """Run everything."""
    feature = FeatureStore(place)[options.feature]
    bench = Bench(feature, batch_size=options.batch_size, buffer_bytes=options.buffer_mib[-1] * 2**20)
    runs, rounds = bench.runs(), []
    for turn in range(options.rounds):
        order = islice(cycle(runs), turn % len(runs), turn % len(runs) + len(runs))
        figures = {name: timed_again(runs[name], len(bench.table)) for name in order}
        rounds.append({name: figures[name] for name in runs})
    memory = []
    for mib in options.buffer_mib:
        command = [sys.executable, __file__, "--store", place, "--feature", options.feature]
        command += ["--batch-size", str(options.batch_size), "--peak-of", str(mib)]
        memory.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "feature": options.feature,
        "rows": len(bench.table),
        "bytes": bench.n_bytes,
        "batch_size": options.batch_size,
        "rounds": rounds,
        "ratios": {
            f"{ours} / {raw}": {
                key: spread([turn[raw][key] / turn[ours][key] for turn in rounds])
                for key in ("wall_s", "cpu_s")
            }
            for ours, raw in RATIOS
        },
        "tracks": bench.tracks(options.track_reads),
        "memory": memory,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", help="a store or a catalog; default: one of made songs")
    parser.add_argument("--minutes", type=float, default=60.0, help="of made songs")
    parser.add_argument("--feature", default="logmel")
    parser.add_argument("--out", type=Path, help="JSON file for every figure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--buffer-mib", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--track-reads", type=int, default=200, metavar="N")
    parser.add_argument("--peak-of", type=int, metavar="MIB", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure a store, or one that is made for it."""
    options = _options()
    if options.peak_of:
        figures = growth(options.store, options.feature, options.batch_size, options.peak_of * 2**20)
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = measured(options.store or made_store(Path(scratch), options.minutes), options)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), "utf-8")
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
