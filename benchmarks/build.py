"""How a build scales and what a worker of it holds: two workers against one, and memory by the size of a shard.

Reported: the speed of two workers over that of one on a source that keeps a core busy, in builds that take turns,
medians, beside what two bare processes gain that read the same samples and build nothing. And how far the USS (what
only that process holds) of a worker that builds rises above what it was before its first sample, for shards of several
sizes, for fixed columns, for ragged ones and for large samples. The bound is 256 MiB and one sample.

Run: ``python benchmarks/build.py [--short] [--rounds N] [--json FILE]``
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import shardcache
from shardcache.format import spec

MIB = 1 << 20
BOUND = 256 * MIB
LOOK_S = 0.01


class Busy:
    """Samples of 3 KiB, each of which takes a core a millisecond or two."""

    def __init__(self, size: int, rounds: int = 8) -> None:
        self.size, self.rounds = size, rounds

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        draw = np.random.default_rng(index)
        row = draw.integers(0, 256, 3072, np.uint8)
        for _ in range(self.rounds):
            row = np.sort(row[draw.permutation(3072)])
        return row, index


class Noise:
    """``size`` samples of ``row_bytes``, or of up to twice that at random where they are ``ragged``."""

    def __init__(self, size: int, row_bytes: int, ragged: bool) -> None:
        self.size, self.row_bytes, self.ragged = size, row_bytes, ragged
        self.table = np.random.default_rng(0).integers(0, 256, 2 * row_bytes + 4096, np.uint8)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        start = index % 4096
        length = index * 7919 % (2 * self.row_bytes) if self.ragged else self.row_bytes
        return self.table[start : start + length].copy(), index


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def build(dataset: Any, folder: Path, **options: Any) -> shardcache.Cache:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        return shardcache.build(dataset, Path(place) / "c", progress=False, **options)


def read_all(dataset: Any) -> None:
    for index in range(len(dataset)):
        dataset[index]


def bare(samples: int, processes: int) -> float:
    """Seconds in which processes read so many samples each."""
    started = [multiprocessing.Process(target=read_all, args=(Busy(samples),)) for _ in range(processes)]

    def run() -> None:
        for process in started:
            process.start()
        for process in started:
            process.join()

    return seconds(run)


def scaling(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Speed of two workers over that of one, and what the machine has room for."""
    builds: dict[int, list[float]] = {1: [], 2: []}
    reads: dict[int, list[float]] = {1: [], 2: []}
    with mock.patch.object(spec, "MIN_SHARD_BYTES", samples * 3072 // 40):  # as many shards as a larger cache has
        for _ in range(rounds):
            for workers in (1, 2):
                builds[workers].append(seconds(lambda w=workers: build(Busy(samples), folder, num_workers=w)))
                reads[workers].append(bare(samples // 4, workers))
    one, two = (statistics.median(taken) for taken in builds.values())
    room = 2 * statistics.median(reads[1]) / statistics.median(reads[2])
    return {"samples": samples, "one_s": one, "two_s": two, "ratio": one / two, "bare_ratio": room}


def uss(pid: int) -> int:
    """Bytes that only this process holds."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def memory(folder: Path, row_bytes: int, ragged: bool, shard_bytes: int) -> dict[str, Any]:
    """How far a worker rises while it builds one shard of this size."""
    samples = max(1, shard_bytes // row_bytes)
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_S):
            for process in active_children():
                try:
                    seen.append(uss(process.pid or 0))
                except (OSError, ValueError):
                    continue

    watcher = threading.Thread(target=watch)
    with mock.patch.multiple(spec, MIN_SHARD_BYTES=shard_bytes, MAX_SHARD_BYTES=shard_bytes):
        watcher.start()
        try:
            build(Noise(samples, row_bytes, ragged), folder, num_workers=1, codec="none")
        finally:
            done.set()
            watcher.join()
    rise = max(seen) - seen[0]
    sample = row_bytes * (2 if ragged else 1)
    return {
        "row_bytes": row_bytes,
        "ragged": ragged,
        "shard_mib": shard_bytes / MIB,
        "peak_mib": max(seen) / MIB,
        "rise_mib": rise / MIB,
        "within": rise < BOUND + sample,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small builds: that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    shards = [MIB, 4 * MIB] if asked.short else [16 * MIB, 128 * MIB, 448 * MIB]
    kinds = [(3072, False), (3072, True), (MIB if asked.short else 32 * MIB, False)]
    with tempfile.TemporaryDirectory(prefix="shardcache-build-") as place:
        folder = Path(place)
        found = scaling(folder, 200 if asked.short else 5000, 1 if asked.short else asked.rounds)
        print(
            f"one worker {found['one_s']:.2f} s, two {found['two_s']:.2f} s: {found['ratio']:.2f} times as fast "
            f"(two bare processes: {found['bare_ratio']:.2f})"
        )
        rows = [memory(folder, row, ragged, shard) for row, ragged in kinds for shard in shards]
    for row in rows:
        kind = "ragged" if row["ragged"] else "fixed"
        print(
            f"rows of {row['row_bytes']:>10,} B, {kind:6}, shard of {row['shard_mib']:4.0f} MiB: a worker rises by "
            f"{row['rise_mib']:6.1f} MiB (to {row['peak_mib']:.0f}){'' if row['within'] else ': TOO MUCH'}"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"scaling": found, "memory": rows}, indent=1))


if __name__ == "__main__":
    main()
