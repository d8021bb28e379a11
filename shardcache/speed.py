"""How fast a cache is read on this machine."""

import time
from dataclasses import dataclass

from shardcache.read import settings
from shardcache.read.cache import Cache
from shardcache.read.dataset import CachedDataset


@dataclass(frozen=True)
class Speed:
    """What a training process gets with a number of worker processes; 0 is itself."""

    num_workers: int
    samples_per_second: float
    bytes_per_second: float


def throughput(cache: Cache, *, batch_size: int, num_workers: int, seconds: float) -> Speed:
    """Take shuffled batches for about ``seconds``, epoch after epoch, and count.

    The clock starts with the second batch of each worker: starting processes is no part of it.
    """
    dataset = CachedDataset(cache, batch_size=batch_size, shuffle=True, epochs=None, collate="list", with_meta=True)
    batches = iter(dataset.loader(num_workers=num_workers))
    for _ in range(max(1, num_workers)):
        next(batches)
    samples, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not samples:
        _, meta = next(batches)
        samples += len(meta.index)
    row = settings.row_bytes(cache.manifest, cache.schema.fields)
    return Speed(num_workers, samples / elapsed, samples / elapsed * row)
