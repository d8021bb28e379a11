"""What resuming costs: the first batches at 90 % of an epoch of 10^6 rows, against those at its start.

Run: ``python benchmarks/resume.py [--rows N] [--json FILE]``. It builds a cache of random rows in a temporary folder.
The two are timed in turn, in one process; the ratio is that of the medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import shardcache


class Rows:
    """Rows of random bytes."""

    def __init__(self, rows: int, row_bytes: int) -> None:
        self.table = np.random.default_rng(0).integers(0, 255, (4096, row_bytes), dtype=np.uint8)
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.table[index % len(self.table)], index


def seconds(dataset: shardcache.CachedDataset, step: int, batches: int) -> float:
    """How long the first ``batches`` from a step on take."""
    dataset.resume(epoch=1, step=step)
    start = time.perf_counter()
    for _ in islice(dataset, batches):
        pass
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--short", action="store_true", help="little of everything: to see that it runs")
    options = parser.parse_args()
    if options.short:
        options.rows, options.rounds = 20_000, 1
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cache = shardcache.build(Rows(options.rows, options.row_bytes), Path(folder) / "cache")
        dataset = shardcache.CachedDataset(cache, batch_size=256, shuffle=True)
        late = int(0.9 * len(dataset))
        for batches in (1, 48, 200):
            seconds(dataset, 0, batches)  # shards are verified when they are first used
            seconds(dataset, late, batches)
            pairs = [(seconds(dataset, 0, batches), seconds(dataset, late, batches)) for _ in range(options.rounds)]
            begin, resume = (statistics.median(times) for times in zip(*pairs, strict=True))
            results.append({"batches": batches, "start": begin, "resume": resume, "ratio": resume / begin})
            print(
                f"first {batches:>3} batches of {options.rows:,} rows: {begin * 1e3:7.1f} ms from the start, "
                f"{resume * 1e3:7.1f} ms from 90 %, ratio {resume / begin:.2f}"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
