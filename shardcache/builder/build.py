"""``build``: source -> rows -> blocks -> shards -> published cache."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from shardcache.builder.engine import Engine
from shardcache.builder.estimate import Survey, check_room, free_bytes
from shardcache.builder.probe import Options, draw_up
from shardcache.builder.progress import Events, Listener, Progress, listener
from shardcache.builder.provenance import provenance
from shardcache.builder.shards import Report, ShardRecord, finished
from shardcache.builder.source import Recipe, Source
from shardcache.builder.staging import Staging, storage_errors
from shardcache.builder.stream import Stream, with_length
from shardcache.builder.tolerance import Tally, Tolerance
from shardcache.builder.work import Work
from shardcache.errors import CacheExistsError, UsageError
from shardcache.format import compression, shard, spec
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
    on_error: str = "raise",
    max_errors: int | None = None,
    if_exists: str = "error",
    block_bytes: int | None = None,
    allow_random: bool = False,
    force: bool = False,
    progress: bool | Events = True,
) -> Cache:
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
        codec: ``"auto"`` (by column, from real rows), ``"zstd"``, ``"zstd:LEVEL"`` (negative ones too), ``"none"``, or
            a dict of these by column name; columns that are not named are ``"auto"``.
        num_workers: processes that read the dataset and write shards; 0 builds in this process. The result is the same
            to the bit. A worker that dies is replaced; the third time over one shard is an error.
        sample_timeout: seconds after which a worker that is still in ``dataset[i]`` is ended, as if it had died.
        max_shards_per_worker: after so many shards a worker is replaced by a new one, for datasets that leak memory.
        on_error: what becomes of a sample for which ``dataset[i]`` raises, or that cannot be stored. ``"raise"``: it
            ends the build; ``"skip"``: it is left out. Then ``len(cache)`` counts what was kept, ``cache[i]`` is the
            i-th kept sample, ``cache.source_index(i)`` its index in the dataset, and ``cache.skipped_samples()`` says
            what was left out and why.
        max_errors: how many samples may be skipped; one more ends the build. Default: one in a hundred, at least 16.
        if_exists: ``"error"``; ``"open"``: return the cache that is there; ``"replace"``: build a new one, then swap.
        block_bytes: raw bytes of a block, the unit of reading, which has at most 1,024 rows. Default: 128 KiB, less in
            a small cache.
        allow_random: build from a dataset that gives other samples when it is read again: one draw is stored.
        force: begin although the disk seems to have too little room.
        progress: show what is to be expected and how far the build is, on standard error: a bar in a terminal, a line
            every 30 seconds elsewhere. A callable gets dicts instead, whose ``"event"`` is ``"estimate"`` or
            ``"progress"``.

    Returns:
        The open cache.

    Raises:
        UsageError: an argument is wrong.
        SourceError: the dataset is empty, its length or a sample cannot be read (the message has the index), or a
            sample holds something that cannot be stored; with ``on_error="skip"``, too many are so.
        RandomSourceError: some samples were read twice and differed.
        CacheExistsError: something is at ``path``.
        StorageError: the disk is full, will be before the cache is done, or may not be written.
        WorkerDiedError: worker processes died over the same shard; the message names the sample that they were at.
        BuildError: anything else that stopped the build. Shards that were finished are kept in ``path + ".partial"``,
            and the same call continues there.
    """
    began = time.time()
    options = Options(layout, seed, codec, block_bytes, shuffle_window)
    options.check()
    engine = Engine(num_workers, sample_timeout, max_shards_per_worker)
    engine.check()
    tolerance = Tolerance(on_error, max_errors)
    tolerance.check()
    said = listener(progress)
    _check(if_exists)
    target = _target(path)
    if _is_taken(target, if_exists):
        return open_cache(target)
    recipe = Recipe(dataset, kwargs, tolerance)
    source = recipe.source()
    options = options.for_source(source)
    if isinstance(source, Stream):
        engine.check_for_stream()
    with Staging(target) as staging:
        if _is_taken(target, if_exists):  # somebody finished it in the meantime
            return open_cache(target)
        plan = _stamped(draw_up(source, options))
        records = staging.begin(plan, tolerance.skips)
        if not isinstance(source, Stream):  # of which nobody knows how long it is, and nothing can be read twice
            _look_ahead(source, plan, records, engine, target, said, allow_random, force)
        work = Work(recipe, plan, staging.directory)
        for record in _records(engine, work, source, records, said):
            staging.keep(record)
            records[record.number] = record
        plan = with_length(plan, source, records)
        staging.publish(plan, records, provenance(dataset, began), replace=if_exists == "replace")
    return open_cache(target)


def _look_ahead(
    source: Source,
    plan: Manifest,
    done: dict[int, ShardRecord],
    engine: Engine,
    target: Path,
    said: Listener,
    allow_random: bool,
    force: bool,
) -> None:
    """What speaks against the build is said before it begins, and what is to be expected of it."""
    survey = Survey(source, plan, engine.num_workers, resumed=bool(done))
    if not allow_random:
        survey.twice.refuse()
    survey.warn()
    expected = survey.estimate(free_bytes(target))
    said.expect(target, expected)
    if not force:
        check_room(expected, target, plan.samples - sum(record.rows for record in done.values()))


def _records(
    engine: Engine, work: Work, source: Source, done: dict[int, ShardRecord], said: Listener
) -> Iterator[ShardRecord]:
    plan = work.plan
    shards: Iterable[int] = (number for number in range(-(-plan.blocks // plan.blocks_per_shard)) if number not in done)
    if isinstance(source, Stream):
        shards = source.shards(plan, done)
    before = [finished(record) for record in done.values()]
    tally = Tally(work.recipe.tolerance, plan.samples, done.values())
    with Progress(plan.samples, said, before) as show:

        def report(progress: Report) -> None:
            show(progress)
            tally.add(progress)

        yield from engine.build(work, source, shards, report)


def _check(if_exists: str) -> None:
    if if_exists not in ("error", "open", "replace"):
        raise UsageError(f"if_exists must be 'error', 'open' or 'replace', was {if_exists!r}")


def _target(path: str | os.PathLike[str]) -> Path:
    """Where the cache goes. A link is followed: what it points to is replaced, not the link."""
    target = Path(path).absolute()
    with storage_errors(target):
        return target.resolve() if target.is_symlink() and target.exists() else target


def _is_taken(target: Path, if_exists: str) -> bool:
    """Whether the cache is there and wanted as it is; what may not be touched is an error."""
    with storage_errors(target):
        if not target.exists() and not target.is_symlink():
            return False
        is_cache = (target / spec.MANIFEST_NAME).is_file()
        is_free = target.is_dir() and not any(target.iterdir())
    if is_cache and if_exists != "error":
        return if_exists == "open"
    if not is_free:
        advice = "if_exists='open' or 'replace' says what to do with it" if is_cache else "choose another path"
        raise CacheExistsError(f"{target}: {'a cache' if is_cache else 'something else'} is here already; {advice}")
    return False


def _stamped(plan: Manifest) -> Manifest:
    """The plan with what else decides about the exact bytes: versions and page size."""
    written_by = {"zstd": compression.library_version(), "lmdb": shard.library_version()}
    return msgspec.structs.replace(plan, written_by=written_by, page_bytes=shard.page_bytes())
