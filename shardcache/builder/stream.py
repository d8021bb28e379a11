"""A source that can only be iterated: one pass, in its own order or shuffled within windows, in bounded memory.

How many samples there are is known at the end, so a shard is begun whenever there are more. What is held of the source
is the samples of the probe, once, and then those of a window and a block.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from shardcache.builder.shards import ShardRecord
from shardcache.builder.source import Source
from shardcache.builder.tolerance import STRICT, Tolerance
from shardcache.errors import BuildError, SampleError, SourceError
from shardcache.format import spec
from shardcache.format.manifest import Manifest


class Stream(Source):
    """An iterable dataset; ``samples`` is 0 until its end was seen.

    Where the dataset has a method ``skip(n)`` that returns what comes behind its first ``n`` samples, as Hugging Face's
    iterable datasets have, a build that was interrupted goes on from there; else those samples are read and dropped.
    """

    def __init__(self, dataset: Any, tolerance: Tolerance = STRICT) -> None:
        self.dataset, self.tolerance, self.samples = dataset, tolerance, 0
        self.kept: dict[int, Any] = {}  # samples that were read and not asked for yet
        self._ahead: deque[Any] = deque()  # samples that the iterator has given too early
        self._queue: deque[int] = deque()  # source indices in the order of the rows to come
        self._position, self._is_at_end = 0, False
        self._iterator = self._begin(dataset)

    def _begin(self, dataset: Any) -> Iterator[Any]:
        try:
            return iter(dataset)
        except Exception as error:
            raise SourceError(f"iter() of the dataset raised {type(error).__name__}: {error}") from error

    def probe(self, count: int, size: Callable[[Any], int], most_bytes: int) -> dict[int, Any]:
        """The first samples, which come again: ``count`` of them, fewer where they are large."""
        found: list[Any] = []
        while len(found) < count and most_bytes >= 0 and (one := self._take(1)):
            found += one
            most_bytes -= size(one[0])
        self._ahead.extendleft(reversed(found))
        self._position -= len(found)
        if not found:
            raise SourceError(f"the dataset ({type(self.dataset).__qualname__}) is empty: it yields no sample")
        return dict(enumerate(found))

    @property
    def length(self) -> int | None:
        """How many samples there are, where that is known."""
        return self._position + len(self._ahead) if self._is_at_end else None

    def _take(self, count: int) -> list[Any]:
        """The next samples, fewer at the end."""
        taken = [self._ahead.popleft() for _ in range(min(count, len(self._ahead)))]
        while len(taken) < count and not self._is_at_end:
            try:
                taken.append(next(self._iterator))
            except StopIteration:
                self._is_at_end = True
            except (Exception, SystemExit) as error:
                # What raised may be a generator, which is dead then: going on would end the cache here without a word.
                at = self._position + len(taken)
                text = f"sample {at}: iterating the dataset raised {type(error).__name__}: {error}"
                raise SampleError(text) from error
        self._position += len(taken)
        return taken

    def read(self, index: int) -> Any:
        """A sample of the block at hand."""
        return self.kept.pop(index)

    def shards(self, plan: Manifest, done: Mapping[int, ShardRecord]) -> Iterator[int]:
        """The numbers of shards to build, as long as there are samples; those that are done are passed over."""
        number, size = len(done), plan.blocks_per_shard * plan.rows_per_block
        if number and done[number - 1].rows < size:
            return
        self._go_to(plan, number * size)
        while self._has_more(plan):
            if number == spec.MAX_SHARDS:
                raise BuildError(
                    f"more than {spec.MAX_SHARDS} shards of {size} samples, the most that a cache can have"
                )
            yield number
            number += 1

    def blocks(self, plan: Manifest, number: int) -> Iterator[list[int]]:
        """The source indices of the rows of each block of a shard, whose samples can be read then."""
        self._go_to(plan, number * plan.blocks_per_shard * plan.rows_per_block)
        for _ in range(plan.blocks_per_shard):
            while len(self._queue) < plan.rows_per_block and self._load(plan):
                pass
            indices = [self._queue.popleft() for _ in range(min(plan.rows_per_block, len(self._queue)))]
            if not indices:
                return
            yield indices
            for index in indices:
                self.kept.pop(index, None)  # of a row that was skipped before

    def _has_more(self, plan: Manifest) -> bool:
        return bool(self._queue) or self._load(plan)

    def _load(self, plan: Manifest) -> bool:
        """Read the next window, or block; whether there was one."""
        start = self._position
        samples = self._take(plan.rows_per_block if plan.window is msgspec.UNSET else plan.window)
        self.kept.update(enumerate(samples, start))
        rows = np.arange(start, self._position)
        whole = msgspec.structs.replace(plan, samples=max(1, self._position))
        permutation = whole.permutation()
        self._queue.extend((rows if permutation is None else permutation.forward(rows)).tolist())
        return bool(samples)

    def _go_to(self, plan: Manifest, row: int) -> None:
        """To a row that is not behind: from the window in which it lies on."""
        here = self._position - len(self._queue)
        if row == here:
            return
        assert row > here
        first = row if plan.window is msgspec.UNSET else row // plan.window * plan.window
        if first > self._position:
            self._queue.clear()
            self.kept.clear()
            self._skip(first - self._position)
        while self._position - len(self._queue) < row and self._has_more(plan):
            self.kept.pop(self._queue.popleft())

    def _skip(self, count: int) -> None:
        skip = getattr(self.dataset, "skip", None)
        if callable(skip) and count > len(self._ahead):
            target = self._position + count
            try:
                self._iterator = self._begin(skip(target))
            except (TypeError, NotImplementedError):  # another method of that name
                pass
            else:
                self._ahead.clear()
                self._position = target
                return
        while count and not self._is_at_end:
            count -= len(self._take(min(count, 1024)))


def with_length(plan: Manifest, source: Source, done: Mapping[int, ShardRecord]) -> Manifest:
    """The plan with the number of samples, which a stream has only now."""
    if not isinstance(source, Stream):
        return plan
    return msgspec.structs.replace(plan, samples=sum(record.rows for record in done.values()))
