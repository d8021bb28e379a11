"""Who builds the shards: this process, worker processes or an executor. The bytes are the same."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor

import msgspec

from shardcache.builder.executors import build_in_executor
from shardcache.builder.parts import Part
from shardcache.builder.pool import Pool
from shardcache.builder.shards import Report, ShardRecord, build_shard
from shardcache.builder.source import Source
from shardcache.builder.work import Work
from shardcache.errors import UsageError


class Engine(msgspec.Struct, frozen=True):
    """How a build is run; nothing of it changes the result."""

    num_workers: int = 0
    sample_timeout: float | None = None
    max_shards_per_worker: int | None = None
    executor: Executor | None = None

    def check(self) -> None:
        """:class:`UsageError` where an option has no sense."""
        if type(self.num_workers) is not int or self.num_workers < 0:
            raise UsageError(f"num_workers must be 0 or more, was {self.num_workers!r}")
        seconds, shards = self.sample_timeout, self.max_shards_per_worker
        if seconds is not None and (type(seconds) not in (int, float) or not seconds > 0):
            raise UsageError(f"sample_timeout must be a number of seconds above 0, was {seconds!r}")
        if shards is not None and not (type(shards) is int and shards > 0):
            raise UsageError(f"max_shards_per_worker must be 1 or more, was {shards!r}")
        for name in ("sample_timeout", "max_shards_per_worker"):
            if getattr(self, name) is None:
                continue
            if self.executor is not None:
                raise UsageError(f"{name}= is for workers of our own; what an executor's do is for the executor")
            if not self.num_workers:
                raise UsageError(f"{name}= needs num_workers=1 or more: only a process of its own can be ended")
        if self.executor is not None and not isinstance(self.executor, Executor):
            raise UsageError(
                "executor must be a concurrent.futures.Executor (of dask: Client.get_executor()), was "
                f"{type(self.executor).__module__}.{type(self.executor).__qualname__}"
            )

    def check_for_stream(self, part: Part | None) -> None:
        """:class:`UsageError` where more than this process is to read what can only be read in one pass."""
        if self.num_workers or self.executor is not None or part is not None:
            raise UsageError(
                "a dataset that can only be iterated is read by one process, in one pass: leave num_workers at 0, and "
                "executor= and part= away (or give one that has __len__ and __getitem__)"
            )

    def build(
        self, work: Work, source: Source, shards: Iterable[int], report: Callable[[Report], None]
    ) -> Iterator[ShardRecord]:
        """Build ``shards`` and keep them, in whatever order they are done. ``source`` is that of this process."""
        if self.executor is not None:
            yield from build_in_executor(self.executor, work, source, list(shards), report, self.num_workers)
        elif self.num_workers:
            source.kept.clear()
            pool = Pool(work, self.num_workers, self.sample_timeout, self.max_shards_per_worker)
            yield from pool.build(list(shards), report)
        else:
            for number in shards:
                record = build_shard(source, work.plan, number, work.directory, report)
                work.keep(record)
                yield record
