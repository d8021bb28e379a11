"""Tables of what was measured: ``python -m benchmarks.peers.report [DIR]`` writes ``README.md`` there."""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import ours, plots
from benchmarks.peers.data import WORKLOADS
from benchmarks.peers.memory import MEMORY
from benchmarks.peers.peer import COLD, MODES, PROCESS, RANDOM, SAMPLES, THREAD, THREADS, WORKERS

OURS = tuple(peer.name for peer in ours.ALL)
LIKE_FFCV = ours.BUFFER.name  # with the shuffle buffer that is compared with FFCV; the others have the default
LIMIT = MEMORY.name
COPIED = tuple(name for name, workload in WORKLOADS.items() if workload.kind in MEMORY.kinds)
SLOW_FORMATS = ("litdata", "streaming", "webdataset", "hf-map", "hf-iterable")

# What is compared: the words, the workloads, the mode, our setting, the others (the fastest of them counts), the aim.
AIMS = (
    ("against FFCV, RANDOM, os_cache=True, one thread", ("patches",), THREAD, LIKE_FFCV, ("ffcv",), 1.25),
    ("against FFCV, RANDOM, os_cache=True, two threads", ("patches",), THREADS, LIKE_FFCV, ("ffcv",), 1.25),
    ("DataLoader, two workers, against the fastest of five", tuple(WORKLOADS), WORKERS, "best", SLOW_FORMATS, 10),
    ("in process, against the fastest of five", tuple(WORKLOADS), PROCESS, "best", SLOW_FORMATS, None),
    ("sample by sample, against LitData", tuple(WORKLOADS), SAMPLES, "best", ("litdata",), 5),
    (
        "cache[i] at random, against LitData and Streaming",
        tuple(WORKLOADS),
        RANDOM,
        "best",
        ("litdata", "streaming"),
        2,
    ),
    ("the limit, one thread: a gather in memory against FFCV", ("patches",), THREAD, LIMIT, ("ffcv",), None),
    ("the limit, sample by sample: a copy in memory against LitData", COPIED, SAMPLES, LIMIT, ("litdata",), None),
    ("cold, two workers, against the fastest of all", tuple(WORKLOADS), COLD, "best", (), None),
)


def load(folder: Path) -> list[dict[str, Any]]:
    """Results in the order of the workloads."""
    return [
        json.loads((folder / f"{name}.json").read_text()) for name in WORKLOADS if (folder / f"{name}.json").exists()
    ]


def rate(result: dict[str, Any], peer: str, mode: str) -> float | None:
    rates = result["peers"].get(peer, {}).get("rates", {}).get(mode)
    return statistics.median(rates) if rates else None


def ratio(result: dict[str, Any], ours: str, other: str, mode: str) -> float | None:
    """The median of the ratios of the rounds: what is measured side by side is compared."""
    sides = [result["peers"].get(name, {}).get("rates", {}).get(mode) for name in (ours, other)]
    if not all(sides):
        return None
    return statistics.median(mine / theirs for mine, theirs in zip(*sides, strict=False))  # one that failed has fewer


def comparisons(results: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, float, float | None]]:
    """What, workload, our setting and the other, ratio, aim."""
    for words, workloads, mode, one, others, aim in AIMS:
        for result in results:
            if result["workload"] not in workloads:
                continue
            mine = [one] if one != "best" else [name for name in OURS if name != LIKE_FFCV]
            names = [name for name in others or result["peers"] if name not in OURS and rate(result, name, mode)]
            best = max(mine, key=lambda name: rate(result, name, mode) or 0)
            if names and rate(result, best, mode):
                other = max(names, key=lambda name: rate(result, name, mode) or 0)
                found = ratio(result, best, other, mode)
                assert found is not None
                yield words, result["workload"], f"{best} : {other}", found, aim
    for result in results:
        builds = [result["peers"].get(name, {}).get("build_s") for name in ("shardcache", "litdata")]
        if all(builds):
            found = statistics.median(theirs / mine for mine, theirs in zip(*builds, strict=False))
            yield "build, two workers, against LitData", result["workload"], "shardcache : litdata", found, 3
    for result in results:
        yield from _sizes(result)


def _sizes(result: dict[str, Any]) -> Iterator[tuple[str, str, str, float, float | None]]:
    """How many times as large the smallest of the others is: by default the whole workload, at the smallest a part."""
    parts = {name: peer["bytes_of_part"] for name, peer in result["peers"].items() if "bytes_of_part" in peer}
    if "shardcache" not in parts or len(parts) < 3:
        return
    sizes = {
        "default": {name: result["peers"][name]["bytes"] for name in parts},
        "smallest": {name: sizes["smallest"] for name, sizes in parts.items()},
    }
    for setting, found in sizes.items():
        other = min((name for name in found if name not in OURS), key=found.__getitem__)
        words = f"bytes on disk, {setting} setting of each, against the smallest"
        yield words, result["workload"], f"shardcache : {other}", found[other] / found["shardcache"], 1


def aims_table(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "| | workload | between | ratio | aim |"
    yield "|---|---|---|---|---|"
    for words, workload, between, found, aim in comparisons(results):
        shown = f"**{found:.2f}**" if aim and found < aim else f"{found:.2f}"
        yield f"| {words} | {workload} | {between} | {shown} | {aim or ''} |"


def rates_table(result: dict[str, Any]) -> Iterator[str]:
    yield f"| samples/s | {' | '.join(MODES)} | written in | bytes, default | smallest |"
    yield f"|---|{'---|' * (len(MODES) + 3)}"
    part = result.get("smallest_of", {}).get("raw_bytes", 1)
    for name, peer in result["peers"].items():
        cells = [_number(rate(result, name, mode)) for mode in MODES]
        sizes = peer.get("bytes_of_part", {})
        build = statistics.median(peer["build_s"]) if peer.get("bytes") else None
        cells.append(f"{build:.1f} s" if build is not None else "")
        cells.append(f"{peer['bytes'] / result['raw_bytes']:.2f}" if peer.get("bytes") else "")
        cells.append(f"{sizes['smallest'] / part:.2f}" if sizes else "")
        yield f"| {name} | {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


HEAD = """# Results

Written by `tools/benchmark`; see `benchmarks/peers/`. Rates are medians of rounds in which all took turns, from the
first batch of an epoch to its last; ratios are medians of the ratios of the rounds, and bold where they fall short of
the aim. Bytes are those on disk for one byte of the raw data; the smallest setting was tried on a part of them. Cold:
no page of the files is in memory at the start (looked up by `mincore`); two workers or threads. The limit is no loader:
samples that lie in memory are copied into objects of their own. Where that misses an aim, so must every loader.
"""


def text(results: list[dict[str, Any]]) -> Iterator[str]:
    yield HEAD
    yield from aims_table(results)
    for result in results:
        megabytes = result["raw_bytes"] / 1e6
        yield f"\n## {result['workload']}: {result['title']}\n"
        yield f"{result['samples']:,} samples, {megabytes:,.0f} MB raw, in batches of {result['batch_size']}.\n"
        yield from rates_table(result)
        yield f"\n![{result['workload']}]({result['workload']}.svg)"
        for name, peer in result["peers"].items():
            if "failed" in peer:
                yield f"\n{name} failed: {peer['failed']}"
    yield from _setting(results)


def _setting(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "\n## How each was set up\n"
    peers = {name: peer for result in results for name, peer in result["peers"].items()}
    for name, peer in peers.items():
        yield f"- **{name}** {peer['version']}: {peer['note']}"
    first, machine = results[0], results[0]["machine"]
    yield f"\n{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB of memory;"
    yield f"{machine['system']}; Python {machine['python']}, torch {machine['torch']}; {machine['date']}."
    yield f"Data made with seed {first['seed']} of {first['photographs']} photographs and of Python's own files."


def write(folder: Path) -> None:
    results = load(folder)
    if results:
        (folder / "README.md").write_text("\n".join(text(results)) + "\n")
        plots.write(results, folder)
        print("\n".join(aims_table(results)))
        print(f"tables and plots: {folder}/README.md")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results"))
