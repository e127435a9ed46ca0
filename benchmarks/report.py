"""Medians, ratios and Markdown tables of what `extract.py` measured."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

NAMES = {
    "a": "librosa + joblib + torch",
    "b": "bare decoding + resampling",
    "c": "mirstore",
    "d": "mirstore without embeddings",
    "e": "mirstore, 1 worker",
}
# One run's figure over another's of the same round, and what the design holds the ratio to.
RATIOS = {
    "librosa + joblib + torch / mirstore, whole commands": ("a", "c", "wall_s", ">= 3"),
    "mirstore without embeddings / bare decoding, steady": ("d", "b", "steady_s", "<= 1.5"),
    "mirstore, 1 worker / all workers, steady": ("e", "c", "steady_s", ">= 1.7"),
}

Figures = dict[str, Any]


def spread(values: Sequence[float]) -> Figures:
    """Return minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(rounds: Sequence[dict[str, Figures]]) -> dict[str, Figures]:
    """Return the ratios of runs of the same round."""
    found = {}
    for name, (over, under, key, _) in RATIOS.items():
        paired = [turn[over][key] / turn[under][key] for turn in rounds if over in turn and under in turn]
        if paired:
            found[name] = spread(paired)
    return found


def shares(run: Figures, workers: int) -> dict[str, float]:
    """Return what the workers' time went to, from the first job to the last commit."""
    seconds = dict(run["stage_s"])
    total = seconds.pop("total")
    seconds["decode, resample, the rest"] = total - sum(seconds.values())
    seconds["wait for jobs"] = workers * run["steady_s"] - total
    return {stage: s / (workers * run["steady_s"]) for stage, s in seconds.items()}


def markdown(results: Figures) -> Iterator[str]:
    """Yield the lines of the report."""
    facts = results["machine"]
    libraries = ", ".join(f"{name} {number}" for name, number in facts["libraries"].items())
    yield (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}; "
        f"Python {facts['python']}, {libraries}. CNN in {facts['mirstore_network']} (mirstore) and "
        f"{facts['baseline_network']} (baseline). {results['workers']} workers.\n"
    )
    yield results["music"]
    if rounds := [turn for turn in results["rounds"] if turn]:
        yield from _runs(rounds)
        yield from _ratios(results["ratios"])
        yield from _shares(rounds, results["workers"])
    if second := results.get("second_run"):
        yield from _second_run(second)
    if memory := results.get("memory"):
        yield from _memory(memory)


def _runs(rounds: Sequence[dict[str, Figures]]) -> Iterator[str]:
    yield f"\nMedians of {len(rounds)} rounds; `rest` is starting Python, stopping workers, tidying the index.\n"
    yield "| run | command, s | start-up | steady | rest | CPU | x real time, command | steady | worker peak, MB |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for letter in sorted({letter for turn in rounds for letter in turn}):
        runs = [turn[letter] for turn in rounds if letter in turn]
        known = {key: statistics.median(run[key] for run in runs) for key in _MEDIANS if key in runs[0]}
        wall_s, steady_s = known["wall_s"], known.get("steady_s")
        cells = [
            f"{wall_s:.2f}",
            f"{known['startup_s']:.2f}" if "startup_s" in known else "",
            f"{steady_s:.2f}" if steady_s else "",
            f"{wall_s - known['startup_s'] - steady_s:.2f}" if steady_s and "startup_s" in known else "",
            f"{known['cpu_s']:.2f}" if "cpu_s" in known else "",
            f"{known['audio_s'] / wall_s:,.0f}",
            f"{known['audio_s'] / steady_s:,.0f}" if steady_s else "",
            f"{known['worker_peak_bytes'] / 1e6:.0f}" if "worker_peak_bytes" in known else "",
        ]
        yield f"| ({letter}) {NAMES[letter]} | {' | '.join(cells)} |"


_MEDIANS = ("wall_s", "startup_s", "steady_s", "audio_s", "cpu_s", "worker_peak_bytes")


def _ratios(found: dict[str, Figures]) -> Iterator[str]:
    if found:
        yield "\n| ratio within a round | min | median | max | held to |\n|---|---:|---:|---:|---:|"
    for name, ratio in found.items():
        values = f"{ratio['min']:.2f} | **{ratio['median']:.2f}** | {ratio['max']:.2f}"
        yield f"| {name} | {values} | {RATIOS[name][3]} |"


def _shares(rounds: Sequence[dict[str, Figures]], workers: int) -> Iterator[str]:
    by_letter = {
        letter: [shares(turn[letter], 1 if letter == "e" else workers) for turn in rounds if letter in turn]
        for letter in "cde"
    }
    by_letter = {letter: runs for letter, runs in by_letter.items() if runs}
    if by_letter:
        yield f"\n| share of the workers' time | {' | '.join(f'({letter})' for letter in by_letter)} |"
        yield "|---|" + "---:|" * len(by_letter)
    for stage in dict.fromkeys(stage for runs in by_letter.values() for run in runs for stage in run):
        medians = [statistics.median(run.get(stage, 0.0) for run in runs) for runs in by_letter.values()]
        yield f"| {stage} | {' | '.join(f'{share:.1%}' for share in medians)} |"


def _second_run(second: Figures) -> Iterator[str]:
    times = spread(second["wall_s"])
    reads = f"{second['files_opened']} audio files opened, {second['bytes_read']} audio bytes read (strace)"
    if "not_traced" in second:
        reads = f"reads not counted: {second['not_traced']}"
    yield (
        f"\nSecond run over {second['tracks']} unchanged tracks: {times['median']:.2f} s "
        f"({times['min']:.2f} to {times['max']:.2f}; held to < 3 s), {reads}."
    )


def _memory(memory: Figures) -> Iterator[str]:
    long, short = memory["minutes"]
    yield f"\n| peak memory of a worker | {long} min | {short} min | difference | held to |"
    yield "|---|---:|---:|---:|---|"
    for letter, peaks in memory["peak_bytes"].items():
        most, least = max(peaks[long]), max(peaks[short])
        cells = f"{most / 1e6:.0f} MB | {least / 1e6:.0f} MB | {most / least - 1:+.1%}"
        yield f"| ({letter}) {NAMES[letter]} | {cells} | < 700 MB, within 10 % |"
