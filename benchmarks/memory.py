"""What each process of a DataLoader holds in memory: with a cache, with Python objects, and a worker without either.

Run: ``python benchmarks/memory.py [--short] [--rows N] [--many-rows N] [--json FILE]``. It builds caches of small
images in a temporary folder. Every line is a process of its own, which starts workers, fetches batches as a training
would, and in the middle of an epoch reads ``/proc/PID/smaps_rollup`` of itself and of each worker:

* USS: what only this process holds, and its end would free;
* PSS: that, and its share of what it holds together with others. The sum over all processes is what the job takes.

The bound of a worker: the USS of a bare worker, which hands on numbers; the shuffle buffer of a worker; the batch ring
(six batches: one is filled, two are prefetched, three are at the consumer); and 24 MiB.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import shardcache
from shardcache.read import settings

ROW_BYTES, BATCH = 3072, 256
MIB = 1 << 20
RING_BATCHES, ALLOWANCE = 6, 24 * MIB
SETTLE = 0.3  # seconds in which the workers prefetch what they may


class Rows(Dataset[Any]):
    """What the caches are built from: rows that compress a little, by their number."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.table = np.random.default_rng(0).integers(0, 48, (4096, ROW_BYTES), dtype=np.uint8)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.from_numpy(self.table[index % 4096] + np.uint8(index // 4096)), index


class Objects(Dataset[Any]):
    """The same rows as Python objects in a list: the dataset that a worker drags along."""

    def __init__(self, rows: int) -> None:
        source = Rows(rows)
        self.samples = [(source[index][0].numpy().tobytes(), index) for index in range(rows)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data, label = self.samples[index]
        return torch.frombuffer(bytearray(data), dtype=torch.uint8), label


class Numbers(IterableDataset[Any]):
    """Of a bare worker: it holds no data, and hands on numbers."""

    def __init__(self, rows: int) -> None:
        self.batches = rows // BATCH

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(0 if info is None else info.id, self.batches, 1 if info is None else info.num_workers))


def memory(pid: int) -> dict[str, int]:
    """PSS and USS of a process, in bytes; and how much of the latter is pages of files, which can be dropped."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        found[name] = int(value.split()[0]) << 10
    return {
        "pss": found["Pss"],
        "uss": found["Private_Clean"] + found["Private_Dirty"],
        "clean": found["Private_Clean"],
    }


def loader_of(case: dict[str, Any]) -> tuple[Any, int]:
    """The loader of a case, and the bytes of a worker's shuffle buffer."""
    workers = case["workers"]
    options = {"num_workers": workers}
    if workers:
        options |= {"multiprocessing_context": case["start"], "persistent_workers": True}
    if case["what"] == "objects":
        return DataLoader(Objects(case["rows"]), batch_size=BATCH, shuffle=True, **options), 0
    if case["what"] == "bare":
        return DataLoader(Numbers(case["rows"]), batch_size=None, **options), 0
    dataset = shardcache.CachedDataset(case["cache"], batch_size=BATCH, shuffle=True)
    plan = dataset._plan(0)
    slots = settings.slots(plan, -(-plan.lanes // max(1, workers)), 1, BATCH)
    return dataset.loader(**options), slots * dataset.cache.manifest.rows_per_block * (ROW_BYTES + 8)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The memory of every process of a case, in the middle of each of its epochs."""
    loader, buffer = loader_of(case)
    epochs = {}
    for epoch in range(1, max(case["epochs"]) + 1):
        if case["what"] == "cache":
            loader.set_epoch(epoch)
        batches = iter(loader)
        if epoch in case["epochs"]:
            for _ in islice(batches, len(loader) // 2 if case["what"] != "bare" else 16):
                pass
            time.sleep(SETTLE)
            pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            epochs[epoch] = [memory(pid) for pid in pids]
        for _ in batches:
            pass
    return {"buffer": buffer, "epochs": epochs}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """A case in a process of its own, and what follows from what it measured."""
    done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], stdout=subprocess.PIPE, check=True)
    measured = json.loads(done.stdout)
    lines = []
    for epoch, (training, *workers) in measured["epochs"].items():
        uss = [worker["uss"] for worker in workers]
        pss = sum(one["pss"] for one in [training, *workers])
        lines.append(
            {
                "epoch": int(epoch),
                "training": training,
                "workers": workers,
                "sum_pss": pss,
                "worker_uss": max(uss, default=0),
            }
        )
    return {**case, "buffer": measured["buffer"], "lines": lines}


def cases(
    rows: int, many: int, starts: list[str], workers: list[int], epochs: list[int], caches: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """Every case."""
    for start in starts:
        for number in workers:
            for what in ("bare", "cache", "objects"):
                if number or start == "fork":
                    yield {
                        "what": what,
                        "start": start,
                        "workers": number,
                        "rows": rows,
                        "epochs": epochs[:1],
                        "cache": caches[rows],
                    }
    for number, of_rows, at in ((workers[-1], rows, epochs), (workers[-1], many, epochs[:1])):
        yield {
            "what": "cache",
            "start": "fork",
            "workers": number,
            "rows": of_rows,
            "epochs": at,
            "cache": caches[of_rows],
        }


def say(result: dict[str, Any], bare: dict[tuple[str, int], int]) -> None:
    """The lines of a case; beside a worker's USS, of a cache, its bound."""
    for line in result["lines"]:
        known = bare.get((result["start"], result["workers"]))
        bound = ""
        if result["what"] == "cache" and known is not None and result["workers"]:
            line["over_bare"] = line["worker_uss"] - known
            line["bound"] = result["buffer"] + RING_BATCHES * BATCH * (ROW_BYTES + 8) + ALLOWANCE
            bound = f"{line['over_bare'] / MIB:7.1f} of {line['bound'] / MIB:.1f}"
        print(
            f"{result['what']:8} {result['start']:6} {result['workers']:7} {result['rows']:9,} {line['epoch']:6} "
            f"{line['training']['uss'] / MIB:12.1f} {line['worker_uss'] / MIB:11.1f} {bound:>18} "
            f"{line['sum_pss'] / MIB:9.1f}",
            flush=True,
        )


def growth(results: list[dict[str, Any]]) -> dict[str, float]:
    """The sum of PSS with the most workers against that with one."""
    found = {}
    for what in ("cache", "objects"):
        for start in dict.fromkeys(result["start"] for result in results):
            sums = {
                result["workers"]: result["lines"][0]["sum_pss"]
                for result in reversed(results)  # the first of a kind counts
                if (result["what"], result["start"]) == (what, start) and result["workers"]
                if result["rows"] == results[0]["rows"]
            }
            most = max(sums)
            found[f"{what}, {start}, {most} workers against 1"] = round(sums[most] / sums[1], 2)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--many-rows", type=int, default=400_000)
    parser.add_argument("--start", nargs="+", default=["fork", "spawn"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--short", action="store_true", help="small caches and few workers: to see that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(json.loads(given.case))))
        return
    if given.short:
        given.rows, given.many_rows, given.epochs = 6_000, 12_000, [1, 2]
        given.start, given.workers = ["fork"], [1]
    results: list[dict[str, Any]] = []
    bare: dict[tuple[str, int], int] = {}
    print(f"{'MiB':8} {'start':6} {'workers':>7} {'rows':>9} {'epoch':>6} {'USS training':>12} {'USS worker':>11} "
          f"{'over a bare one':>18} {'sum PSS':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        caches = {}
        for rows in (given.rows, given.many_rows):
            caches[rows] = str(Path(folder) / str(rows))
            shardcache.build(Rows(rows), caches[rows], progress=False, num_workers=2)
        for case in cases(given.rows, given.many_rows, given.start, given.workers, given.epochs, caches):
            result = run(case)
            if case["what"] == "bare":
                bare[case["start"], case["workers"]] = result["lines"][0]["worker_uss"]
            say(result, bare)
            results.append(result)
    ratios = growth(results)
    for what, ratio in ratios.items():
        print(f"sum of PSS, {what}: {ratio}x")
    if given.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform()}
        given.json.write_text(json.dumps({"versions": versions, "results": results, "growth": ratios}, indent=1))


if __name__ == "__main__":
    main()
