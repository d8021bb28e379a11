"""How fast ``verify`` is, against an epoch of reading and against reading the files as plain bytes.

Run: ``python benchmarks/verify.py [--mib N] [--rounds N] [--threads N] [--json FILE]``. It builds a cache of images in
a temporary folder. The three are timed in turn, in one process, warm; ratios are medians of those of each round.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shardcache


class Images:
    """Pictures that compress as photographs do, a little."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        noise = np.random.default_rng(index).integers(0, 24, (64, 64, 3), dtype=np.uint8)
        return noise + np.uint8(index % 200), index


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(path: Path, rounds: int, threads: int | None) -> dict[str, float]:
    files = sorted(path.glob("shard-*.lmdb"))
    stored = sum(file.stat().st_size for file in files)

    def plain() -> None:
        buffer = bytearray(1 << 20)
        for name in files:
            with name.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def epoch() -> None:
        for _ in shardcache.CachedDataset(path, batch_size=256, order="stored"):
            pass

    def verify() -> None:
        assert shardcache.verify(path, num_workers=threads)

    times = [(seconds(verify), seconds(epoch), seconds(plain)) for _ in range(rounds + 1)][1:]  # the first warms up

    def median(values: list[float]) -> float:
        return round(statistics.median(values), 3)

    return {
        "stored_mb": round(stored / 1e6, 1),
        "verify_mb_s": median([stored / 1e6 / checked for checked, _, _ in times]),
        "epoch_mb_s": median([stored / 1e6 / read for _, read, _ in times]),
        "plain_mb_s": median([stored / 1e6 / copied for _, _, copied in times]),
        "verify_to_epoch": median([read / checked for checked, read, _ in times]),
        "verify_to_plain": median([copied / checked for checked, _, copied in times]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="raw size of the cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true", help="little of everything: to see that it runs")
    given = parser.parse_args()
    if given.short:
        given.mib, given.rounds = 4, 1
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for codec in ("none", "zstd:1"):
            path = Path(folder) / codec.replace(":", "-")
            shardcache.build(Images((given.mib << 20) // (64 * 64 * 3)), path, codec=codec, progress=False)
            found[codec] = measure(path, given.rounds, given.threads)
            print(codec, found[codec])
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
