"""How the index grows: what opening, planning, looking up, committing and upkeep cost with up to a million tracks.

    python benchmarks/index.py --out index.json --plot index.png

Makes a synthetic store of each size (`index_build.py`) and measures each thing in a process of its own
(`index_measures.py`, `index_upkeep.py`), in seconds of wall time and of CPU, with the process's peak memory.
Prints a table by number of tracks, with the exponent of growth: the slope of log CPU against log tracks over the
largest tenfold. It is the CPU's because others may be running on the machine.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
MEASURES = """
    opening tracks past plan_unchanged plan_changed lookups append merge merge_jobs compaction
    features halves labels relabelled exporting dropping forgetting forgetting_worn compacting rewriting
    listing collecting verifying
""".split()
DECADE = 10
Figures = dict[str, Any]


def run(*command: object) -> tuple[str, float, float, int]:
    """Run a command; return what it prints, its wall time and CPU in seconds, and its peak memory in bytes."""
    begun = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"index.py: {' '.join(map(str, command))} exited {process.returncode}.")
    # What this process has in memory counts as the child's: it is kept small.
    return printed, time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def measured(folder: Path, n_tracks: int, n_real: int) -> dict[str, Figures]:
    """Return wall time, CPU and peak memory by measure, for a store that is made where it is not there yet."""
    found: dict[str, Figures] = {}

    def keep(name: str, wall_s: float, cpu_s: float, peak_bytes: int) -> None:
        found[name] = {"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes}
        print(
            f"{n_tracks:>9,} {name:<30} {wall_s:10.4f} s {cpu_s:10.4f} s CPU {peak_bytes / 1e6:7.0f} MB",
            file=sys.stderr,
        )

    if not folder.exists():
        keep("build", *run(sys.executable, HERE / "index_build.py", folder, n_tracks, n_real)[1:])
    for measure in MEASURES:
        printed, *_, peak_bytes = run(sys.executable, HERE / "index_measures.py", measure, folder)
        for name, (wall_s, cpu_s) in json.loads(printed).items():
            keep(name, wall_s, cpu_s, peak_bytes)
    mirstore = Path(sys.executable).with_name("mirstore")
    keep("status", *run(mirstore, "status", "--json", "--catalog", folder / "catalog.yaml")[1:])
    return found


def exponents(by_size: dict[int, dict[str, Figures]]) -> dict[str, float]:
    """Return the slope of log CPU against log tracks by measure, over the largest tenfold (or all there is)."""
    sizes = [size for size in sorted(by_size) if size * DECADE >= max(by_size)]
    if len(sizes) < 2:
        sizes = sorted(by_size)
    found = {}
    for name in by_size[sizes[-1]]:
        points = [
            (math.log(size), math.log(max(1e-9, by_size[size][name]["cpu_s"])))
            for size in sizes
            if name in by_size[size]
        ]
        if len(points) < 2:
            continue
        mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
        above = sum((x - mean_x) * (y - mean_y) for x, y in points)
        found[name] = above / sum((x - mean_x) ** 2 for x, _ in points)
    return found


def table(by_size: dict[int, dict[str, Figures]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, aligned: a row a measure, a column a number of tracks."""
    sizes, growth = sorted(by_size), exponents(by_size)
    rows = [["wall time, by tracks", *(f"{size:,}" for size in sizes), "CPU", "peak memory", "growth"]]
    largest = by_size[sizes[-1]]
    for name, last in largest.items():
        walls = [_readable(by_size[size][name]["wall_s"]) if name in by_size[size] else "" for size in sizes]
        slope = f"{growth[name]:+.2f}" if name in growth else ""
        rows.append([name, *walls, _readable(last["cpu_s"]), f"{last['peak_bytes'] / 1e6:,.0f} MB", slope])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        yield f"| {' | '.join(cells)} |"
        if not number:
            yield f"|{'|'.join(['-' * (widths[0] + 2), *('-' * (width + 1) + ':' for width in widths[1:])])}|"


def _readable(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


PLOTTED = ("plan, unchanged", "status", "tracks with labels", "spans", "merge of 1,000", "append of a job")
FLAT = ("open", "values of a track", "one chunk of a track", "number of a track")


def save_plot(by_size: dict[int, dict[str, Figures]], path: Path) -> None:
    """Draw CPU against tracks, both logarithmic, with a line of slope 1."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sizes = sorted(by_size)
    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    for names, style in ((PLOTTED, "o-"), (FLAT, "s--")):
        for name in names:
            axes.plot(
                sizes, [by_size[size][name]["cpu_s"] for size in sizes], style, label=name, ms=4, lw=1.3
            )
    top = by_size[sizes[-1]]["plan, unchanged"]["cpu_s"] * 2.5
    axes.plot(sizes, [top * size / sizes[-1] for size in sizes], ":", color="0.4", label="slope 1")
    axes.set(xscale="log", yscale="log", xlabel="tracks in the index", ylabel="CPU, s")
    axes.grid(which="major", color="0.9")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="tracks, by 16")
    parser.add_argument("--real-parts", type=int, default=32, metavar="N", help="25 MB each")
    parser.add_argument(
        "--folder", type=Path, help="keep the stores there, to be measured again; default: none"
    )
    parser.add_argument("--out", type=Path, help="JSON file for every figure")
    parser.add_argument("--plot", type=Path, help="picture of the growth")
    options = parser.parse_args()
    by_size: dict[int, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for size in sorted(options.sizes):
            by_size[size] = measured(folder / str(size), size, options.real_parts)
            if options.out:
                results = {"by_tracks": by_size, "growth": exponents(by_size)}
                options.out.write_text(json.dumps(results, indent=1), "utf-8")
    print("\n".join(table(by_size)))
    if options.plot:
        save_plot(by_size, options.plot)


if __name__ == "__main__":
    main()
