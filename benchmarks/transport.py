"""How fast batches reach the training process: the batch ring against the ordinary transport of the DataLoader.

The workers gather rows that lie in memory, so that nothing but the way to the training process is measured. Both
transports take turns, several rounds; every batch is looked at, the first of each round compared in full. Reported are
medians over the rounds of batches a second, from the first batch to the last (without the start of the workers).

Run: python benchmarks/transport.py [--rounds 5] [--seconds 2] [--json results.json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardcache.read.transport import transport

BATCH, ROW = 256, 3072
WARM_UP = 20  # batches


@dataclass(frozen=True)
class Case:
    what: str
    mean_bytes: int  # of a row
    form: str = "matrix"  # or "rows" (views of one tensor), "tensors" (each by itself), "transform" (to float32)

    def sizes(self, number: int) -> list[int]:
        """Bytes of each row of batch `number`; for "matrix" and "transform" all the same."""
        if self.form in ("matrix", "transform"):
            return [self.mean_bytes] * BATCH
        generator = torch.Generator().manual_seed(number % 8)
        low = self.mean_bytes // 2
        return (low + torch.randint(0, self.mean_bytes, (BATCH,), generator=generator)).tolist()


CASES = [
    Case("256 x 3072 bytes, one tensor", ROW),
    Case("the same, as the float32 result of a transform", ROW, "transform"),
    Case("256 rows of about 4 KB, views of one tensor", 4096, "rows"),
    Case("256 rows of about 4 KB, each a tensor of its own", 4096, "tensors"),
]


class Batches(IterableDataset[Any]):
    """Rows out of 25 MB of random bytes, and whose batch it is, and which."""

    def __init__(self, case: Case, kind: str, seconds: float) -> None:
        self.case, self.kind, self.seconds = case, kind, seconds

    def __iter__(self) -> Iterator[Any]:
        source = transport(self.kind)
        info = get_worker_info()
        worker = info.id if info else 0
        arena = random_bytes(8192 * ROW).view(8192, ROW)
        plans = [(torch.randint(0, 8192, (BATCH,)), self.case.sizes(number)) for number in range(8)]
        number, end = 0, time.perf_counter() + self.seconds
        while number <= WARM_UP or time.perf_counter() < end:
            places, sizes = plans[number % 8]
            tag, data = source.batch([(torch.int64, (BATCH,)), (torch.uint8, (sum(sizes),))])
            tag.fill_(number)[0] = worker
            if self.case.form in ("matrix", "transform"):
                torch.index_select(arena, 0, places, out=data.resize_(BATCH, ROW))
                yield tag, data.float() if self.case.form == "transform" else data
            else:
                data.copy_(arena.view(-1)[: len(data)])
                rows = source.rows(data, cumulated(sizes))
                yield tag, [row.clone() for row in rows] if self.case.form == "tensors" else rows
            number += 1


def random_bytes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)


def cumulated(sizes: list[int]) -> list[int]:
    return [0, *torch.tensor(sizes).cumsum(0).tolist()]


def look(case: Case, data: Any) -> None:
    """Compare a whole batch with what it was made of."""
    if case.form in ("matrix", "transform"):
        known = {row.numpy().tobytes() for row in random_bytes(8192 * ROW).view(8192, ROW)}
        assert all(row.to(torch.uint8).numpy().tobytes() in known for row in data)
    else:
        flat = torch.cat(list(data))
        assert torch.equal(flat, random_bytes(8192 * ROW)[: len(flat)])


def measure(case: Case, kind: str, workers: int, seconds: float) -> dict[str, float]:
    start, count, nbytes = 0.0, 0, 0
    numbers = [0] * workers
    loader = DataLoader(Batches(case, kind, seconds), batch_size=None, num_workers=workers)
    for step, (tag, data) in enumerate(loader):
        if step == 0:
            look(case, data)
        worker = int(tag[0])
        assert int(tag[1]) == int(tag[-1]) == numbers[worker]
        numbers[worker] += 1
        if step == WARM_UP:
            start, count, nbytes = time.perf_counter(), 0, 0
        count += 1
        nbytes += sum(row.nbytes for row in data) if isinstance(data, list) else data.nbytes
    elapsed = time.perf_counter() - start
    return {"batches_per_s": count / elapsed, "MB_per_s": nbytes / elapsed / 1e6}


def compare(case: Case, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    seen: dict[str, list[dict[str, float]]] = {"torch": [], "auto": []}
    for _ in range(rounds):
        for kind, results in seen.items():
            results.append(measure(case, kind, workers, seconds))
    medians = {
        kind: {unit: statistics.median(result[unit] for result in results) for unit in results[0]}
        for kind, results in seen.items()
    }
    pairs = zip(seen["torch"], seen["auto"], strict=True)
    ratio = statistics.median(ring["batches_per_s"] / plain["batches_per_s"] for plain, ring in pairs)
    return {"case": case.what, "workers": workers, "default": medians["torch"], "ring": medians["auto"], "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for which the workers make batches, each time")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true", help="little of everything: to see that it runs")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.rounds, arguments.seconds, arguments.workers = 1, 0.1, [2]
    torch.multiprocessing.set_sharing_strategy("file_descriptor")
    results = []
    print(f"{'':50} {'workers':>7} {'default':>19} {'ring':>19} {'ratio':>6}")
    for case in CASES:
        for workers in arguments.workers:
            result = compare(case, workers, arguments.rounds, arguments.seconds)
            results.append(result)
            sides = [
                f"{side['batches_per_s']:7.0f}/s {side['MB_per_s']:5.0f} MB/s"
                for side in (result["default"], result["ring"])
            ]
            print(f"{case.what:50} {workers:7} {sides[0]:>19} {sides[1]:>19} {result['ratio']:5.1f}x", flush=True)
    if arguments.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform()}
        arguments.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
