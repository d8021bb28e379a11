"""A worker process that is killed in mid-epoch: the training process must hear of it."""

import os
import random
import signal
import time
from pathlib import Path

from torch.utils.data import DataLoader

import shardcache
from shardcache.format import spec
from tests.faults.children import in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import victim
from tests.processes import alive_after, kill_worker

FAULT = "a worker killed in mid-epoch"
REQUIRED = "error within 10 s, nothing left"
SHORT, LONG = 4, 100

DEADLINE_S = 10.0
STARTED = ("fork", "fork", "fork", "fork", "spawn", "forkserver")
KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)


def shared_files(pids: list[int]) -> list[str]:
    """What these processes have in shared memory under a name (torch puts its process's number into it)."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return [name for name in names if any(f"_{pid}_" in name or name.endswith(f"_{pid}") for pid in pids)]


def kill_one(path: Path, seed: int, number: int) -> Outcome:
    draw = random.Random(f"{seed} {number}")
    started = STARTED[number % len(STARTED)]
    dataset = shardcache.CachedDataset(path, batch_size=2, shuffle=True, collate="list", epochs=None)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=draw.choice([1, 2, 3]),
        multiprocessing_context=started,
        prefetch_factor=draw.choice([2, 4]),
    )
    batches = iter(loader)
    for _ in range(draw.randrange(1, 30)):
        next(batches)
    workers = [process.pid for process in batches._workers]
    killer = kill_worker(batches, draw.choice(workers), draw.choice(KILLS))
    start = time.monotonic()
    try:
        while time.monotonic() - start < DEADLINE_S:
            next(batches)
    except StopIteration:
        return Outcome("silent", f"{started}: the epoch just ended")
    except Exception as error:
        outcome = Outcome("refused", f"{type(error).__name__}: {error}")
    else:
        return Outcome("hang", f"{started}: batches go on for {DEADLINE_S:g} s without the worker's")
    took = time.monotonic() - start
    killer.join()
    del batches, loader
    if orphans := alive_after(DEADLINE_S, workers):
        return Outcome("orphan", f"{started}: {orphans} live on")
    if left := shared_files([os.getpid(), *workers]):
        return Outcome("left", f"{started}: {left} in /dev/shm")
    return outcome if took < DEADLINE_S else Outcome("late", f"{started}: after {took:.1f} s")


def run(asked: Asked) -> Figures:
    if not Path("/proc/self/task").exists():
        return Figures(skipped="asks /proc which processes there are")
    with victim(LARGE_ROW_BYTES=spec.LARGE_ROW_BYTES) as path:  # as processes that are spawned know it
        return in_children(lambda number: kill_one(path, asked.seed, number), asked.numbers, hang_s=90)
