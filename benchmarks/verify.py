"""How fast ``verify`` is, against an epoch of reading, and what a value costs more by ``io="pread"`` than in a map.

Run: ``python benchmarks/verify.py [--mib N] [--rounds N] [--threads N] [--json FILE]``. It builds a cache of images in
a temporary folder. All take turns, in one process, warm; ratios are medians of those of each round.

``verify`` has a thread for each core, as it is called by default, or ``--threads``. The epoch, in the order in which
blocks lie, is read by one thread (``verify_to_epoch``, as one process reads), and by as many as ``verify`` has
(``verify_to_epoch_threads``). ``sha256`` hashes the files and does nothing else, in as many threads: ``verify`` cannot
be faster.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import shardcache
from shardcache.format.columns import fixed_row_bytes


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


def measure(path: Path, rounds: int, threads: int) -> dict[str, float]:
    files = sorted(path.glob("shard-*.lmdb"))
    stored = sum(file.stat().st_size for file in files) / 1e6

    def sha256() -> None:
        def digest(name: Path) -> None:
            with name.open("rb", buffering=0) as file:
                hashlib.file_digest(file, "sha256")

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(digest, files))

    def epoch(threads: int) -> None:
        for _ in shardcache.CachedDataset(path, batch_size=256, order="stored", threads=threads):
            pass

    def verify() -> None:
        assert shardcache.verify(path, num_workers=threads)

    runs = {
        "verify": verify,
        "epoch": partial(epoch, 0),
        "epoch_threads": partial(epoch, threads),
        "sha256": sha256,
        "mmap": partial(read_all, shardcache.open(path, io="mmap")),
        "pread": partial(read_all, shardcache.open(path, io="pread")),
    }
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds + 1)][1:]  # the first warms up

    def median(of: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(map(of, times)), 3)

    values = shardcache.verify(path, num_workers=threads).values
    found = {f"{name}_mb_s": median(lambda of, name=name: stored / of[name]) for name in list(runs)[:4]}
    ratios = {f"verify_to_{name}": median(lambda of, name=name: of[name] / of["verify"]) for name in list(runs)[1:4]}
    micros = {f"{io}_us_a_value": median(lambda of, io=io: of[io] / values * 1e6) for io in ("mmap", "pread")}
    costs = median(lambda of: (of["pread"] - of["mmap"]) / values * 1e6)
    return {"stored_mb": round(stored, 1), **found, **ratios, **micros, "pread_costs_us_a_value": costs}


def read_all(cache: shardcache.Cache) -> None:
    """Every block, each fixed column to where it belongs, as an epoch reads them."""
    m = cache.manifest
    sizes = {field.position: fixed_row_bytes(m.columns[field.position]) for field in cache.schema}
    memory = {position: memoryview(bytearray(m.rows_per_block * size)) for position, size in sizes.items()}
    for number in range(-(-m.samples // m.rows_per_block)):
        rows = m.block_rows(number)
        cache.blocks.read(number, (), {at: memory[at][: rows * size] for at, size in sizes.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="raw size of the cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 4))
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
            print(codec, *(f"{name} {value:,}" for name, value in found[codec].items()), sep="\n    ")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
