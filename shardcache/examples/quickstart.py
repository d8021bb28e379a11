"""Build a cache of the Python files on this machine, and train a small next-byte model from it.

    python -m shardcache.examples.quickstart [--out DIR]

Takes less than a minute. A second run finds the cache and reuses it.
"""

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import shardcache
from shardcache.examples.python_sources import PythonSources

CONTEXT = 8  # bytes that the model sees ...
PREDICTED = 128  # ... of each byte that it predicts in a window
BATCH = 64
WORKERS = 2
AVERAGED = 20  # steps in one figure of the loss


def main(arguments: list[str] | None = None) -> None:
    """Build or open, train, read, report."""
    options = _parse(arguments)
    try:
        cache = build(options)
        train(cache, options.steps)
        read(cache)
    except shardcache.CacheError as error:
        sys.exit(f"{error}\nTo build the cache anew: --rebuild")
    say("next", f"`shardcache info {shown(cache.path)}` tells what is in the cache; a second run of this")
    say("", "reuses it; README.md has the lines that change in your own training script.")


def build(options: argparse.Namespace) -> shardcache.Cache:
    """The cache: built in the first run, opened in later ones."""
    path = options.out / "python-sources"
    reused, started = not options.rebuild and path.exists(), time.perf_counter()
    cache = shardcache.build(
        PythonSources,
        path,
        kwargs={"max_files": options.max_files, "max_bytes": options.max_bytes},
        num_workers=WORKERS,
        if_exists="replace" if options.rebuild else "open",
    )
    took, info = time.perf_counter() - started, cache.info()
    how = "reused the one that was there" if reused else f"built by {WORKERS} processes"
    say("cache", f"{how}, in {took:.1f} s: {shown(path)}")
    raw, stored = info["raw_bytes"], info["file_bytes"]
    say("", f"{len(cache):,} Python files, {mega(raw)}, take {mega(stored)} on disk: {raw / stored:.1f} times less")
    return cache


Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def random_window(source: Bytes, rng: np.random.Generator) -> Bytes:
    """Some bytes from anywhere in a file; a file that is too short is filled up with 0, which no source contains."""
    window = np.zeros(CONTEXT + PREDICTED, np.uint8)
    start = rng.integers(max(1, len(source) - len(window) + 1))
    part = source[start : start + len(window)]
    window[: len(part)] = part
    return window


class NextByte(nn.Module):
    """Predicts each byte from the bytes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.layers = nn.Sequential(nn.Conv1d(32, 128, CONTEXT), nn.GELU(), nn.Conv1d(128, 256, 1))

    def forward(self, windows: Tensor) -> Tensor:
        """uint8 [batch, CONTEXT + PREDICTED] -> the loss of its last PREDICTED bytes, in bits per byte."""
        windows = windows.long()
        logits: Tensor = self.layers(self.embedding(windows[:, :-1]).transpose(1, 2))
        return nn.functional.cross_entropy(logits, windows[:, CONTEXT:], ignore_index=0) / math.log(2)


def train(cache: shardcache.Cache, steps: int) -> None:
    """An ordinary training loop around an ordinary DataLoader."""
    ds = shardcache.CachedDataset(
        cache, batch_size=BATCH, shuffle=True, columns=["source"], transform={"source": random_window}
    )
    loader = DataLoader(ds, batch_size=None, num_workers=WORKERS, persistent_workers=True)

    def batches() -> Iterator[Tensor]:
        for epoch in range(steps):
            ds.set_epoch(epoch)
            for batch in loader:
                yield batch["source"]

    torch.manual_seed(0)
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) - WORKERS)))  # the workers need cores too
    model = NextByte()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    say("train", f"a next-byte model, {steps} steps of {BATCH} files; the loss is in bits per byte (8 is guessing)")
    losses, started = [], time.perf_counter()
    for step, windows in zip(range(1, steps + 1), batches(), strict=False):
        loss = model(windows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step in (1, steps) or step % max(1, steps // 4) == 0:
            recent = losses[-AVERAGED:]
            say("", f"step {step:>4}   loss {sum(recent) / len(recent):.2f}")
    took = time.perf_counter() - started
    rate = len(losses) * BATCH / took
    say("", f"{rate:,.0f} samples/s, {rate * (CONTEXT + PREDICTED) / 1e6:.2f} MB/s delivered: what the model can take")
    memory()


def read(cache: shardcache.Cache) -> None:
    """The same loader without a model: whole files, whatever their length."""
    ds = shardcache.CachedDataset(cache, batch_size=BATCH, shuffle=True, columns=["source"], collate="list")
    loader = DataLoader(ds, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    next(iter(loader))  # the workers start
    ds.set_epoch(1)
    files = volume = 0
    started = time.perf_counter()
    for batch in loader:
        files += len(batch["source"])
        volume += sum(map(len, batch["source"]))
    took = time.perf_counter() - started
    say("read", "every file once, whole and shuffled, with no model to wait for:")
    say("", f"{files / took:,.0f} samples/s, {mega(volume / took)}/s delivered by {WORKERS} worker processes")


def memory() -> None:
    """What each process holds, while the workers are alive."""
    workers = sorted(process.pid or 0 for process in multiprocessing.active_children())
    rows = [("trainer", os.getpid()), *((f"worker {number}", pid) for number, pid in enumerate(workers))]
    try:
        held = [(name, *_smaps(pid)) for name, pid in rows]
    except OSError:
        say("memory", "(can be shown on Linux only)")
        return
    say("memory", f"{'':<9}{'PSS':>10}{'USS':>10}")
    for name, pss, uss in held:
        say("", f"{name:<9}{mega(pss):>10}{mega(uss):>10}")
    say("", "PSS: memory that processes share (most of it is torch itself) is divided among them;")
    say("", "USS: what a process has for itself.")


def _smaps(pid: int) -> tuple[int, int]:
    """PSS and USS of a process in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    size = {name: int(value.split()[0]) << 10 for name, value in (line.split(":") for line in lines)}
    return size["Pss"], size["Private_Clean"] + size["Private_Dirty"]


def say(label: str, text: str) -> None:
    """One line of the report."""
    print(f"{label:<8}{text}", flush=True)


def mega(count: float) -> str:
    """Bytes, readable."""
    return f"{count / 1e6:,.1f} MB"


def shown(path: Path) -> str:
    """A path as one would type it."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shardcache.examples.quickstart",
        description="Build a cache of the Python files on this machine, and train a small next-byte model from it.",
    )
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    out = caches / "shardcache" / "quickstart"
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"where the cache lies (default: {out})")
    parser.add_argument("--rebuild", action="store_true", help="build the cache anew, if there is one")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="training steps (default: %(default)s)")
    parser.add_argument("--max-files", type=int, default=None, metavar="N", help="files in the cache (default: all)")
    parser.add_argument(
        "--max-bytes", type=int, default=64_000_000, metavar="N", help="bytes in the cache (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
