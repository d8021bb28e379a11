"""How fast a cache is read on this machine, and with which setting."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardcache.read import settings
from shardcache.read.cache import Cache
from shardcache.read.dataset import CachedDataset

_LIMIT_BLOCKS = 512


@dataclass(frozen=True)
class Speed:
    """What a training process gets from a number of worker processes (0: itself) that each have so many threads.

    ``share`` is that of the limit: what one core reaches that only reads and decodes the same blocks.
    """

    num_workers: int
    threads: int
    samples_per_second: float
    bytes_per_second: float
    share: float


def limit(cache: Cache, seconds: float) -> float:
    """Samples a second of one core that reads blocks of this cache and decodes them, and does nothing else."""
    m, positions = cache.manifest, [at for field in cache.schema for at in field.positions]
    blocks = np.random.default_rng(0).permutation(m.blocks)[:_LIMIT_BLOCKS].tolist()
    rows, start = 0, time.perf_counter()
    for number in itertools.cycle(blocks):
        cache.blocks.read(number, positions)
        rows += m.block_rows(number)
        if time.perf_counter() - start >= seconds:
            break
    return rows / (time.perf_counter() - start)


def throughput(
    cache: Cache, *, batch_size: int, num_workers: int, threads: int = 0, seconds: float, limit: float
) -> Speed:
    """Take shuffled batches for about ``seconds``, epoch after epoch, and count.

    The clock starts with the second batch of each worker: starting processes is no part of it.
    """
    dataset = CachedDataset(
        cache, batch_size=batch_size, shuffle=True, epochs=None, collate="list", with_meta=True, threads=threads
    )
    batches = iter(dataset.loader(num_workers=num_workers))
    for _ in range(max(1, num_workers)):
        next(batches)
    samples, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not samples:
        _, meta = next(batches)
        samples += len(meta.index)
    row = settings.row_bytes(cache.manifest, cache.schema.fields)
    return Speed(num_workers, threads, samples / elapsed, samples / elapsed * row, samples / elapsed / limit)


def recommended(speeds: Sequence[Speed]) -> Speed:
    """The one to use: of those within a tenth of the fastest, the one with the fewest processes and threads."""
    fastest = max(speed.samples_per_second for speed in speeds)
    good = [speed for speed in speeds if speed.samples_per_second >= 0.9 * fastest]
    return min(good, key=lambda speed: (speed.num_workers, speed.threads))
