"""Whether a source is much slower when it is read at random than when neighbours follow each other."""

import statistics
import time
import warnings

from shardcache.builder.source import Source
from shardcache.errors import SampleError, ShardCacheWarning
from shardcache.wording import duration

_PAIRS, _ENOUGH = 32, 4
_SECONDS, _MOST_SECONDS = 1.0, 5.0
_MUCH_SLOWER = 4
_WORTH_SECONDS = 10  # less than this in all is not worth a word


class Locality:
    """Seconds a sample at scattered indices and at neighbouring ones, read in turn, so that both see the same machine.

    Each pair begins beside a sample of the probe, in the probe's order: a source that keeps what it decoded (row
    groups, chunks) has it still when everything fits into what it keeps, and is slow only when it has not.
    """

    def __init__(self, source: Source) -> None:
        self.scattered: list[float] = []
        self.neighbouring: list[float] = []
        began = time.perf_counter()
        for index in list(source.kept):
            spent = time.perf_counter() - began
            enough = len(self.scattered) >= _ENOUGH
            if len(self.scattered) == _PAIRS or spent > (_SECONDS if enough else _MOST_SECONDS):
                return
            if index + 2 < source.samples and source.kept.keys().isdisjoint((index + 1, index + 2)):
                self._time(source, index + 1)

    def _time(self, source: Source, index: int) -> None:
        try:
            start = time.perf_counter()
            source.read(index)
            between = time.perf_counter()
            source.read(index + 1)
            end = time.perf_counter()
        except SampleError:  # the build will come to it
            return
        self.scattered.append(between - start)
        self.neighbouring.append(end - between)

    def warn(self, samples: int, workers: int) -> None:
        """Say so where the shuffled layout costs much more time than the dataset's own order."""
        if len(self.scattered) < _ENOUGH:
            return
        scattered, neighbouring = statistics.median(self.scattered), statistics.median(self.neighbouring)
        more = (scattered - neighbouring) * samples / max(1, workers)
        if scattered > _MUCH_SLOWER * neighbouring and more > _WORTH_SECONDS:
            warnings.warn(
                f"the dataset is slow to read at random: {1000 * scattered:.3g} ms a sample, "
                f"{1000 * neighbouring:.3g} ms after its neighbour. The shuffled layout takes about {duration(more)} "
                "longer for it; layout='source' (--layout source) reads in the dataset's own order",
                ShardCacheWarning,
                stacklevel=4,
            )
