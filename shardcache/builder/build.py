"""``build``: source -> rows -> blocks -> shards -> published cache."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import msgspec

from shardcache.builder.engine import Engine
from shardcache.builder.estimate import Survey, check_room, free_bytes
from shardcache.builder.parts import as_part
from shardcache.builder.probe import Options, draw_up
from shardcache.builder.progress import Events, Listener, Progress, listener
from shardcache.builder.provenance import provenance
from shardcache.builder.shards import Report, ShardRecord, finished
from shardcache.builder.source import Recipe, Source
from shardcache.builder.staging import Staging
from shardcache.builder.stream import Stream, with_length
from shardcache.builder.target import is_taken, target_of
from shardcache.builder.tolerance import Tally, Tolerance
from shardcache.builder.work import Work
from shardcache.format import compression, shard
from shardcache.format.manifest import Manifest
from shardcache.read.cache import Cache
from shardcache.read.cache import open as open_cache


def build(
    dataset: Any,
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    layout: str | None = None,
    seed: int = 0,
    shuffle_window: int | None = None,
    codec: str | Mapping[str, str] = "auto",
    num_workers: int = 0,
    sample_timeout: float | None = None,
    max_shards_per_worker: int | None = None,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
    on_error: str = "raise",
    max_errors: int | None = None,
    if_exists: str = "error",
    block_bytes: int | None = None,
    allow_random: bool = False,
    force: bool = False,
    progress: bool | Events = True,
) -> Cache | Any:
    """Materialise a dataset into a cache, once.

    Args:
        dataset: what has ``__len__`` and ``__getitem__``; or what can only be iterated (an ``IterableDataset``, a
            generator), which is read in one pass; or a callable that makes it (called with ``kwargs``); or
            ``"package.module:callable"`` or ``"file.py:callable"``.
        path: the directory to be made. An existing one is never overwritten unasked.
        layout: ``"shuffled"``, the default for what has random access: rows lie in a seeded random order, so that every
            shard is a fair sample. ``"source"``, the default for what can only be iterated: in the dataset's own order,
            also for validation sets, sequences whose neighbours matter, and sources without cheap random access.
            ``"window"``: in between, each window of ``shuffle_window`` samples that follow each other shuffled.
        seed: of the shuffled layout and of windows.
        shuffle_window: samples of a window. Default: 64 MiB of them, at most 65,536.
        codec: ``"auto"`` (by column, from real rows), ``"zstd"``, ``"zstd:LEVEL"`` (negative ones too), ``"lzma"``
            (smallest and slowest), ``"none"``, or a dict of these by column name; columns that are not named are
            ``"auto"``.
        num_workers: processes that read the dataset and write shards; 0 builds in this process. The result is the same
            to the bit. A worker that dies is replaced; the third time over one shard is an error.
        sample_timeout: seconds after which a worker that is still in ``dataset[i]`` is ended, as if it had died.
        max_shards_per_worker: after so many shards a worker is replaced by a new one, for datasets that leak memory.
        executor: builds the shards instead of workers: any ``concurrent.futures.Executor``, of processes, threads, dask
            (``Client.get_executor()``), MPI, loky. Its machines must share the directory, and the dataset must survive
            being pickled; for threads it must be safe to read from several. ``num_workers`` is then how many shards are
            under way; 0: twice the executor's workers.
        part: ``(k, n)``, counted from 1: build only the k-th of n parts, beside other jobs that build the others, and
            publish nothing; :func:`~shardcache.finish` does.
        on_error: what becomes of a sample for which ``dataset[i]`` raises, or that cannot be stored. ``"raise"``: it
            ends the build; ``"skip"``: it is left out. Then ``len(cache)`` counts what was kept, ``cache[i]`` is the
            i-th kept sample, ``cache.source_index(i)`` its index in the dataset, and ``cache.skipped_samples()`` says
            what was left out and why.
        max_errors: how many samples may be skipped; one more ends the build. Default: one in a hundred, at least 16.
        if_exists: ``"error"``; ``"open"``: return the cache that is there; ``"replace"``: build a new one, then swap.
        block_bytes: raw bytes of a block, the unit of reading, which has at most 16,384 rows. Default: 128 KiB and at
            most 1,024 rows, less in a small cache.
        allow_random: build from a dataset that gives other samples when it is read again: one draw is stored.
        force: begin although the disk seems to have too little room.
        progress: show what is to be expected and how far the build is, on standard error: a bar in a terminal, a line
            every 30 seconds elsewhere. A callable gets dicts instead, whose ``"event"`` is ``"estimate"`` or
            ``"progress"``.

    Returns:
        The open cache; None for a part, unless the cache is there already.

    Raises:
        UsageError: an argument is wrong.
        SourceError: the dataset is empty, its length or a sample cannot be read (the message has the index), or a
            sample holds something that cannot be stored; with ``on_error="skip"``, too many are so.
        RandomSourceError: some samples were read twice and differed.
        CacheExistsError: something is at ``path``.
        StorageError: the disk is full, will be before the cache is done, or may not be written.
        WorkerDiedError: worker processes died over the same shard; the message names the sample that they were at. Or a
            process of ``executor`` did.
        BuildInProgressError: another process is building this cache, or this part of it.
        BuildMismatchError: an interrupted build, or other parts, were begun with another dataset or other options.
        BuildError: anything else that stopped the build. Shards that were finished are kept in ``path + ".partial"``,
            and the same call continues there.
    """
    began = time.time()
    options = Options(layout, seed, codec, block_bytes, shuffle_window)
    options.check()
    engine = Engine(num_workers, sample_timeout, max_shards_per_worker, executor)
    engine.check()
    tolerance = Tolerance(on_error, max_errors)
    tolerance.check()
    said = listener(progress)
    mine = as_part(part)
    target = target_of(path)
    if is_taken(target, if_exists):
        return open_cache(target)
    recipe = dataset.tolerating(tolerance) if isinstance(dataset, Recipe) else Recipe(dataset, kwargs, tolerance)
    source = recipe.source()
    options = options.for_source(source)
    if isinstance(source, Stream):
        engine.check_for_stream(mine)
    with Staging(target, mine) as staging:
        if is_taken(target, if_exists):  # somebody finished it in the meantime
            return open_cache(target)
        plan = _stamped(draw_up(source, options))
        records = staging.begin(plan, tolerance.skips)
        shards = range(plan.shard_count) if mine is None else mine.shards(plan)
        if not isinstance(source, Stream):  # of which nobody knows how long it is, and nothing can be read twice
            left = [number for number in shards if number not in records]
            _look_ahead(source, plan, left, engine, target, said, allow_random, force)
        if mine is not None:
            staging.note(provenance(recipe.factory, began))
        work = Work(recipe, plan, staging.directory)
        for record in _records(engine, work, source, shards, records, said):
            records[record.number] = record
        if mine is not None:
            return None
        plan = with_length(plan, source, records)
        staging.publish(plan, records, provenance(recipe.factory, began), replace=if_exists == "replace")
    return open_cache(target)


def _look_ahead(
    source: Source,
    plan: Manifest,
    left: Sequence[int],
    engine: Engine,
    target: Path,
    said: Listener,
    allow_random: bool,
    force: bool,
) -> None:
    """What speaks against the build is said before it begins, and what is to be expected of it."""
    survey = Survey(source, plan, engine.num_workers, resumed=len(left) < plan.shard_count)
    if not allow_random:
        survey.twice.refuse()
    survey.warn()
    expected = survey.estimate(free_bytes(target))
    said.expect(target, expected)
    if not force:
        check_room(expected, target, sum(map(plan.shard_rows, left)))


def _records(
    engine: Engine, work: Work, source: Source, shards: Sequence[int], done: dict[int, ShardRecord], said: Listener
) -> Iterator[ShardRecord]:
    plan = work.plan
    rows = sum(map(plan.shard_rows, shards))
    left: Iterable[int] = [number for number in shards if number not in done]
    if isinstance(source, Stream):
        left, shards = source.shards(plan, done), list(done)
    before = [finished(done[number]) for number in shards if number in done]
    tally = Tally(work.recipe.tolerance, plan.samples, done.values())
    with Progress(rows, said, before) as show:

        def report(progress: Report) -> None:
            show(progress)
            tally.add(progress)

        yield from engine.build(work, source, left, report)


def _stamped(plan: Manifest) -> Manifest:
    """The plan with what else decides about the exact bytes: versions and page size."""
    written_by = {"zstd": compression.library_version(), "lmdb": shard.library_version()}
    return msgspec.structs.replace(plan, written_by=written_by, page_bytes=shard.page_bytes())
