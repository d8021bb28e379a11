"""How fast batches reach the training process: the batch ring against the ordinary transport of the DataLoader.

The workers gather rows that lie in memory, so that nothing but the way to the training process is measured; in one case
they decode them from zstd -1, in blocks of 128 KiB. Both transports take turns, several rounds; every batch is looked
at, the first of each round compared in full. Reported are medians over the rounds of batches a second, from the first
batch to the last (without the start of the workers).

In the same turns the workers do the same work in memory of their own and send nothing but the number of the batch. That
is what a transport could reach that takes no time: "at most" is its ratio to the default.

Run: python benchmarks/transport.py [--rounds 5] [--seconds 2] [--json results.json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardcache.read.transport import TorchTransport, transport

BATCH, ROW = 256, 3072
BLOCK = 128 << 10
WARM_UP = 20  # batches


@dataclass(frozen=True)
class Case:
    what: str
    mean_bytes: int  # of a row
    form: str = (
        "matrix"  # or "rows" (views of one tensor), "tensors" (each by itself), "transform" (to float32), "zstd"
    )

    @property
    def is_matrix(self) -> bool:
        return self.form in ("matrix", "transform", "zstd")

    def sizes(self, number: int) -> list[int]:
        """Bytes of each row of batch `number`; of a matrix all the same."""
        if self.is_matrix:
            return [self.mean_bytes] * BATCH
        generator = torch.Generator().manual_seed(number % 8)
        low = self.mean_bytes // 2
        return (low + torch.randint(0, self.mean_bytes, (BATCH,), generator=generator)).tolist()


CASES = [
    Case("256 x 3072 bytes, one tensor", ROW),
    Case("the same, as the float32 result of a transform", ROW, "transform"),
    Case("the same, decoded from zstd -1", ROW, "zstd"),
    Case("256 rows of about 4 KB, views of one tensor", 4096, "rows"),
    Case("256 rows of about 4 KB, each a tensor of its own", 4096, "tensors"),
]


class Batches(IterableDataset[Any]):
    """Rows out of 25 MB, and whose batch it is, and which; of the kind "none" only the latter."""

    def __init__(self, case: Case, kind: str, seconds: float) -> None:
        self.case, self.kind, self.seconds = case, kind, seconds

    def __iter__(self) -> Iterator[Any]:
        own = TorchTransport() if self.kind == "none" else None
        source = own or transport(self.kind)
        info = get_worker_info()
        worker = info.id if info else 0
        arena = photograph_like_bytes() if self.case.form == "zstd" else random_bytes(8192 * ROW)
        work = Work(self.case, arena)
        number, end = 0, time.perf_counter() + self.seconds
        kept: list[Tensor] = []
        while number <= WARM_UP or time.perf_counter() < end:
            sizes = work.sizes[number % 8]
            shapes = [(torch.int64, (BATCH,)), (torch.uint8, (sum(sizes),))]
            if own is None or not kept or len(kept[1]) != sum(sizes):
                kept = source.batch(shapes)
            tag, data = kept
            tag.fill_(number)[0] = worker
            filled = work.fill(number, data)
            if own is not None:
                yield (worker, number, number), None
            elif self.case.is_matrix:
                yield tag, filled
            else:
                rows = source.rows(data, cumulated(sizes))
                yield tag, [row.clone() for row in rows] if self.case.form == "tensors" else rows
            number += 1


class Work:
    """What a worker does for a batch, whichever way it is sent."""

    def __init__(self, case: Case, arena: Tensor) -> None:
        self.case, self.arena = case, arena
        self.places = [torch.randint(0, 8192, (BATCH,)) for _ in range(8)]
        self.sizes = [case.sizes(number) for number in range(8)]
        self.frames = compressed(arena) if case.form == "zstd" else []
        self.decompressor = zstandard.ZstdDecompressor()

    def fill(self, number: int, data: Tensor) -> Tensor:
        if self.case.form == "zstd":
            out = data.numpy().data
            for place in range(0, len(out), BLOCK):
                frame = self.frames[(number * len(out) + place) // BLOCK % len(self.frames)]
                with self.decompressor.stream_reader(frame) as reader:
                    reader.readinto(out[place : place + BLOCK])
            return data.view(BATCH, ROW)
        if self.case.is_matrix:
            matrix = data.view(BATCH, ROW)
            torch.index_select(self.arena.view(8192, ROW), 0, self.places[number % 8], out=matrix)
            return matrix.float() if self.case.form == "transform" else matrix
        return data.copy_(self.arena[: len(data)])


@lru_cache
def photograph_like_bytes() -> Tensor:
    """Bytes that zstd -1 compresses to about a half, in short matches and in literals, as it does photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8192 * ROW, generator=generator) * 10 + 128
    pieces = noise.to(torch.uint8).view(-1, 2, 16)
    pieces[:, 1, :7] = pieces[:, 0, :7]
    return pieces.view(-1)


def compressed(arena: Tensor) -> list[bytes]:
    compressor = zstandard.ZstdCompressor(level=1)
    return [compressor.compress(part.numpy().data) for part in arena.split(BLOCK)]


def random_bytes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)


def cumulated(sizes: list[int]) -> list[int]:
    return [0, *torch.tensor(sizes).cumsum(0).tolist()]


def look(case: Case, data: Any) -> None:
    """Compare a whole batch with what it was made of."""
    if case.is_matrix:
        arena = photograph_like_bytes() if case.form == "zstd" else random_bytes(8192 * ROW)
        known = {row.numpy().tobytes() for row in arena.view(8192, ROW)}
        assert all(row.to(torch.uint8).numpy().tobytes() in known for row in data)
    else:
        flat = torch.cat(list(data))
        assert torch.equal(flat, random_bytes(8192 * ROW)[: len(flat)])


def measure(case: Case, kind: str, workers: int, seconds: float) -> dict[str, float]:
    start, count, nbytes = 0.0, 0, 0
    numbers = [0] * workers
    loader = DataLoader(Batches(case, kind, seconds), batch_size=None, num_workers=workers)
    for step, (tag, data) in enumerate(loader):
        if step == 0 and data is not None:
            look(case, data)
        worker = int(tag[0])
        assert int(tag[1]) == int(tag[-1]) == numbers[worker]
        numbers[worker] += 1
        if step == WARM_UP:
            start, count, nbytes = time.perf_counter(), 0, 0
        count += 1
        nbytes += sum(row.nbytes for row in data) if isinstance(data, list) else data.nbytes if data is not None else 0
    elapsed = time.perf_counter() - start
    return {"batches_per_s": count / elapsed, "MB_per_s": nbytes / elapsed / 1e6}


def compare(case: Case, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    seen: dict[str, list[dict[str, float]]] = {"torch": [], "auto": [], "none": []}
    for _ in range(rounds):
        for kind, results in seen.items():
            results.append(measure(case, kind, workers, seconds))
    medians = {
        kind: {unit: statistics.median(result[unit] for result in results) for unit in results[0]}
        for kind, results in seen.items()
    }
    ratio, most = (
        statistics.median(
            one["batches_per_s"] / plain["batches_per_s"] for plain, one in zip(seen["torch"], seen[kind], strict=True)
        )
        for kind in ("auto", "none")
    )
    sides = {"default": medians["torch"], "ring": medians["auto"], "without": medians["none"]["batches_per_s"]}
    return {"case": case.what, "workers": workers, **sides, "ratio": ratio, "at_most": most}


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
    print(f"{'':50} {'workers':>7} {'default':>19} {'ring':>19} {'ratio':>6} {'at most':>8}")
    for case in CASES:
        for workers in arguments.workers:
            result = compare(case, workers, arguments.rounds, arguments.seconds)
            results.append(result)
            sides = [
                f"{side['batches_per_s']:7.0f}/s {side['MB_per_s']:5.0f} MB/s"
                for side in (result["default"], result["ring"])
            ]
            print(
                f"{case.what:50} {workers:7} {sides[0]:>19} {sides[1]:>19} {result['ratio']:5.1f}x "
                f"{result['at_most']:7.1f}x",
                flush=True,
            )
    if arguments.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform()}
        arguments.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
