"""Every way in which processes and threads can read one cache at once."""

import itertools
import multiprocessing
from pathlib import Path
from typing import NamedTuple

import shardcache
from shardcache.format import spec
from tests.exact import exact
from tests.faults.children import in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import Victim, victim

FAULT = "start method x workers x persistent x opened first x two x threads"
REQUIRED = "works"


class Cell(NamedTuple):
    started: str
    workers: int
    is_persistent: bool
    is_open_before: bool  # the parent has the cache open when its workers start
    datasets: int  # on one cache, read in turns
    threads: int

    @property
    def epochs(self) -> int:
        """Workers that are spawned anew for each epoch take long, and do nothing new in the second."""
        return 1 if self.started == "spawn" and self.workers and not self.is_persistent else 2


CELLS = [
    Cell(*cell)
    for cell in itertools.product(
        ("fork", "spawn", "forkserver"), (0, 2, 8), (False, True), (False, True), (1, 2), (0, 2)
    )
    if cell[1] or (cell[0] == "fork" and not cell[2])  # without workers, nothing is started and nothing persists
]
SHORT, LONG = 4, len(CELLS)


def read(path: Path, cell: Cell) -> Outcome:
    expected = sorted(repr(exact(Victim()[index])) for index in range(len(Victim())))
    cache = shardcache.open(path)
    if cell.is_open_before:
        cache[0], cache[-1]
    options = (
        {"multiprocessing_context": cell.started, "persistent_workers": cell.is_persistent} if cell.workers else {}
    )
    loaders = [
        shardcache.CachedDataset(cache, shuffle=True, seed=seed, threads=cell.threads).loader(cell.workers, **options)
        for seed in range(cell.datasets)
    ]
    for epoch in range(cell.epochs):
        for loader in loaders:
            loader.set_epoch(epoch)
        found: list[list[str]] = [[] for _ in loaders]
        for samples in itertools.zip_longest(*loaders):
            for number, sample in enumerate(samples):
                found[number].append(repr(exact(sample)))
        if any(sorted(one) != expected for one in found):
            return Outcome("silent", f"{cell}: other samples in epoch {epoch}")
    return Outcome("works")


def run(asked: Asked) -> Figures:
    """The cells that are cheap come first."""
    cells = sorted(asked.order(CELLS), key=lambda cell: cell.workers == 8 or cell.started == "spawn")

    def trial(number: int) -> Outcome:
        try:
            return read(path, cells[number])
        except Exception as error:
            return Outcome("exception", f"{cells[number]}: {type(error).__name__}: {error}")

    with victim(LARGE_ROW_BYTES=spec.LARGE_ROW_BYTES) as path:  # as processes that are spawned know it
        preload = [shardcache.CachedDataset.__module__]
        return in_children(
            trial,
            asked.within(len(cells)),
            hang_s=300,
            prepare=lambda: multiprocessing.set_forkserver_preload(preload),
        )
