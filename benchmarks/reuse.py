"""What reusing a cache costs, and what happens when many ask for one at once.

Reported: seconds to fingerprint a dataset over many files, warm (they were listed before); milliseconds of a whole
`get_or_build` that finds its cache, with its spot check of 8 samples and without, medians of several; and races of
eight processes, each for a cache that is not there yet: how many builds there were, and how many caches the
processes got.

Run: python benchmarks/reuse.py [--files 100000] [--rounds 15] [--races 100] [--json results.json]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from shardcache import Cache, get_or_build
from shardcache.registry.fingerprint import fingerprint

PROCESSES = 8


class Noise:
    """3 KiB samples; each read of the first one leaves a byte in the file `REUSE_LOG`, where there is one."""

    def __init__(self, size: int = 20_000, root: str = "") -> None:
        self.size, self.root = size, root

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        log = os.environ.get("REUSE_LOG")
        if log and not index:
            with open(log, "ab") as file:
                file.write(b".")
        return np.random.default_rng(index).bytes(3072), index


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def files(folder: Path, count: int) -> dict[str, float]:
    for number in range(count):
        path = folder / f"{number % 100:02}" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    times = [timed(lambda: fingerprint(Noise, {"root": str(folder)})) for _ in range(4)]
    return {"files": count, "first_s": times[0], "warm_s": min(times[1:])}


def reuse(home: Path, rounds: int) -> dict[str, float]:
    def get(spot_check: int) -> Cache:
        return get_or_build(Noise, name="noise", cache_dir=home, spot_check=spot_check, progress=False)

    get(0)
    checked, unchecked = ([timed(lambda n=n: get(n)) for _ in range(rounds)] for n in (8, 0))
    source = Noise()
    samples = [timed(lambda: [source[index] for index in range(8)]) for _ in range(rounds)]
    medians = {
        name: statistics.median(times) * 1e3
        for name, times in (("reuse_ms", checked), ("without_check_ms", unchecked), ("eight_samples_ms", samples))
    }
    return {**medians, "beyond_samples_ms": medians["reuse_ms"] - medians["eight_samples_ms"]}


def contend(home: str, log: str, number: int) -> tuple[int, str]:
    os.environ["REUSE_LOG"] = log
    kwargs = {"size": 300 + number}
    # The log, which a build writes to, is no data of the dataset: `version` stands for the code that names it.
    options = {"version": "1", "spot_check": 0, "progress": False}
    cache = get_or_build(Noise, name="race", kwargs=kwargs, cache_dir=home, **options)
    assert all(cache[index][1] == index for index in range(0, 300, 37))
    return os.stat(cache.path).st_ino, cache.digest


def races(home: Path, count: int) -> dict[str, int]:
    reads, mixed = [], 0
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        for number in range(-1, count):
            log = home / f"log-{number}"
            several = (
                PROCESSES if number >= 0 else 1
            )  # the first one is alone, and says how often a build reads sample 0
            got = pool.starmap(contend, [(str(home), str(log), number)] * several, chunksize=1)
            reads.append(log.stat().st_size)
            mixed += len(set(got)) > 1
    alone, *raced = reads
    return {
        "races": count,
        "processes": PROCESSES,
        "more_than_one_build": sum(n > alone for n in raced),
        "mixed": mixed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true", help="little of everything: to see that it runs")
    asked = parser.parse_args()
    if asked.short:
        asked.files, asked.rounds, asked.races = 100, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        home, data = Path(folder, "home"), Path(folder, "data")
        data.mkdir()
        found = {
            "fingerprint": files(data, asked.files),
            "reuse": reuse(home, asked.rounds),
            "races": races(home, asked.races),
        }
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
