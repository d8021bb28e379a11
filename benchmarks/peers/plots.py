"""A plot for each workload: samples a second of every peer, in process and with two workers."""

import importlib.util
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import PROCESS, THREAD, THREADS, WORKERS

GROUPS = (("in process (FFCV: one thread)", (PROCESS, THREAD), "#4477aa"),)
GROUPS += (("two workers (FFCV: two threads)", (WORKERS, THREADS), "#ee6677"),)


def write(results: list[dict[str, Any]], folder: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
        return
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "shardcache"  # the same file for the same figures
    for result in results:
        _plot(result, folder / f"{result['workload']}.svg")


def _plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    names = [name for name, peer in result["peers"].items() if "rates" in peer][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(names) + 1.2), layout="constrained")
    for number, (label, modes, colour) in enumerate(GROUPS):
        rates = [_median(result["peers"][name]["rates"], modes) for name in names]
        places = [place + 0.2 - 0.4 * number for place in range(len(names))]
        bars = axes.barh(places, rates, 0.38, label=label, color=colour)
        axes.bar_label(bars, [f"{rate:,.0f}" if rate else "" for rate in rates], padding=3, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"samples/s; {result['title']}, batches of {result['batch_size']}")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _median(rates: dict[str, list[float]], modes: tuple[str, ...]) -> float:
    found = [rates[mode] for mode in modes if mode in rates]
    return statistics.median(found[0]) if found else 0.0
