"""How fast a cache is read on this machine, and with which setting."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardcache.format.columns import fixed_row_bytes
from shardcache.read import settings
from shardcache.read.cache import Cache
from shardcache.read.dataset import CachedDataset
from shardcache.read.fields import RAGGED, TENSOR

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
    m, fixed = cache.manifest, {field.position: field for field in cache.schema if field.batch == TENSOR}
    others = [at for field in cache.schema if field.position not in fixed for at in field.positions]
    sizes = {position: fixed_row_bytes(m.columns[position]) for position in fixed}
    memory = {position: np.empty(size * m.rows_per_block, np.uint8).data for position, size in sizes.items()}
    blocks = np.random.default_rng(0).permutation(m.blocks)[:_LIMIT_BLOCKS].tolist()
    rows, start = 0, time.perf_counter()
    for number in itertools.cycle(blocks):
        count = m.block_rows(number)
        cache.blocks.read(number, others, {at: whole[: sizes[at] * count] for at, whole in memory.items()})
        rows += count
        if time.perf_counter() - start >= seconds:
            break
    return rows / (time.perf_counter() - start)


def throughput(
    cache: Cache, *, batch_size: int, num_workers: int, threads: int = 0, seconds: float, limit: float
) -> Speed:
    """Take shuffled batches for about ``seconds``, epoch after epoch, and count.

    The clock starts with the second batch of each worker: starting processes is no part of it.
    """
    lists = {field.name: "list" for field in cache.schema if field.batch == RAGGED}
    dataset = CachedDataset(
        cache, batch_size=batch_size, shuffle=True, epochs=None, collate=lists, with_meta=True, threads=threads
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
