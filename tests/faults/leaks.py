"""File descriptors, mappings and memory over many epochs, in the training process and in its workers."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader

import shardcache
from shardcache.format import leases
from tests.faults.children import in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import victim

FAULT = "descriptors, mappings, memory over 200 epochs"
REQUIRED = "flat"
SHORT, LONG = 60, 200  # epochs

WARM = 20  # epochs until everything that is allocated once has been
GROWTH_BYTES = 3 << 20
GROWTH_MAPS = 12  # an allocator may split one

Counts = tuple[int, int, int]


def counts(pid: int) -> Counts:
    """(file descriptors, mappings, resident bytes as PSS) of a process."""
    process = Path(f"/proc/{pid}")
    pss = next(line for line in (process / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return len(os.listdir(process / "fd")), len((process / "maps").read_text().splitlines()), int(pss.split()[1]) << 10


def here(path: Path, epochs: int, io: str) -> Iterator[int]:
    """Epochs in this process, each with all shards closed and opened again."""
    dataset = shardcache.CachedDataset(path, batch_size=12, shuffle=True, collate="list", io=io)
    for number in range(epochs):
        leases.close_all()
        dataset.set_epoch(number)
        for _ in dataset:
            pass
        yield os.getpid()


def in_a_worker(path: Path, epochs: int, io: str) -> Iterator[int]:
    """Epochs in a worker that stays."""
    dataset = shardcache.CachedDataset(path, batch_size=12, shuffle=True, collate="list", io=io)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for number in range(epochs):
        dataset.set_epoch(number)
        batches = iter(loader)
        for _ in batches:
            pass
        yield batches._workers[0].pid


def is_flat(path: Path, epochs: int, number: int) -> Outcome:
    train, io = ((here, "mmap"), (here, "pread"), (in_a_worker, "auto"))[number]
    seen = []
    for epoch, pid in enumerate(train(path, epochs, io)):
        if epoch in (WARM, epochs - 1):
            gc.collect()
            seen.append(counts(pid))
    fds, maps, pss = (after - before for before, after in zip(*seen, strict=True))
    text = f"{train.__name__}, {io}: {fds:+d} descriptors, {maps:+d} mappings, {pss >> 10:+d} KiB, of {seen[0]}"
    return Outcome("flat" if fds <= 0 and maps <= GROWTH_MAPS and pss <= GROWTH_BYTES else "grows", text)


def run(asked: Asked) -> Figures:
    """``asked.trials`` is how many epochs."""
    if not Path("/proc/self/smaps_rollup").exists():
        return Figures(skipped="memory is read from /proc")
    with victim() as path:
        return in_children(lambda number: is_flat(path, max(asked.trials, 2 * WARM), number), range(3), hang_s=600)
