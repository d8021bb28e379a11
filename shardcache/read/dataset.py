"""``CachedDataset``: the read journey. manifest -> plan -> shard -> block -> buffer -> batch."""

import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from shardcache.errors import UsageError
from shardcache.format.permutation import Integers
from shardcache.read import cache as caches
from shardcache.read import recipe as recipes
from shardcache.read import settings, topology
from shardcache.read.ahead import run_ahead
from shardcache.read.cache import Cache
from shardcache.read.collate import Pad, Policies
from shardcache.read.decode import decoders_of
from shardcache.read.epochs import Epochs
from shardcache.read.iteration import Iteration, check_accelerate, check_caller
from shardcache.read.loader import Loader
from shardcache.read.orphans import end_with_parent
from shardcache.read.pipeline import Pipeline
from shardcache.read.plan import Plan
from shardcache.read.recipe import Recipe
from shardcache.read.transforms import Transform, check_picklable
from shardcache.read.watch import Board


class CachedDataset(IterableDataset[Any]):
    """Samples or batches of a cache, for training.

    An ordinary ``IterableDataset``: ``DataLoader(ds, batch_size=None, num_workers=4)``, or
    ``ds.loader(num_workers=4)``, which is the same and knows its state. Every row comes exactly once an epoch over all
    workers and ranks, and for the same seed and epoch in the same batches for every number of workers that divides 48.

    Args:
        cache: a :class:`~shardcache.Cache` or the path of one.
        batch_size: rows of a batch on each rank; None yields single samples.
        shuffle: a new order in every epoch (:meth:`set_epoch`), a function of ``seed`` and epoch.
        order: instead of ``shuffle``: ``"shuffled"``, ``"source"`` (the default), or ``"stored"``: each row once in the
            order that costs least.
        shuffle_buffer: bound of the shuffle buffer of a rank, in samples or in bytes (``"64MiB"``), to which two blocks
            a lane and a batch are added. Default: what keeps the rows of a block apart, within 64 MiB.
        seed: of the order and of the transforms.
        columns: names (positions for a tuple) of the columns to read; the others are not touched.
        decode: by column, what becomes of the bytes of an image file, before transforms. ``"rgb8"``, ``"rgba8"``,
            ``"gray8"``: a uint8 tensor ``[channels, height, width]``, channels last in memory; ``"pil"``: an image.
        transform: a callable for a sample, or a dict of callables by column. It may take ``rng``, a
            ``numpy.random.Generator``, which depends on (seed, epoch, index in the cache) alone; without, the global
            generators are seeded so before each call.
        batch_transform: a callable for a batch; it may take ``rng``, which depends on (seed, epoch, step).
        collate: what a batch holds of columns whose shape varies: ``"list"`` (the default), ``"pad"`` or
            :class:`~shardcache.Pad`; or a dict of these by column.
        collate_fn: a callable that makes a batch from a list of (transformed) samples.
        with_meta: yield ``(batch, Meta(index, valid))``, in which ``cache[index]`` is the sample.
        drop_last: drop the rows that do not fill a batch; the same as ``remainder="drop"``.
        remainder: ``"drop"``; ``"pad"``: fill up with rows that come again, marked in ``Meta.valid``; ``"keep"``: a
            short batch. Default: keep on one rank, pad on several (canonical ones), so that all have the same number of
            batches.
        rank, world_size: default: from ``torch.distributed``, else from RANK and WORLD_SIZE in the environment.
        global_batch_size: instead of ``batch_size``: rows of a batch over all ranks.
        canonical_ranks: the world size for which the order is made (default: the present one). Every world size that
            divides it sees the same global batches.
        epochs: how many epochs one iteration goes through, each in its own order; None never ends.
        threads: how many threads decode ahead of the consumer, in this process and in each worker process; 0: none, it
            is done when a batch is asked for. The batches are the same, and transforms run in the consumer's thread.
        io: how values are read, as for :func:`~shardcache.open`; default: as the cache was opened.
        on_corrupt: ``"raise"``, or ``"skip"``: samples of damaged blocks are left out. Batches keep their number and
            size: another sample of the batch stands in, marked in ``Meta.valid``; ``skipped`` counts, and each block is
            warned of once.
        transport: ``"auto"``: batches reach the training process through shared memory that is used again and again;
            ``"torch"``: as the DataLoader sends them.

    Raises:
        UsageError: the arguments contradict each other; the message says what to write instead.
        StructureError: there is no such column.
        CacheError: the cache cannot be opened; and, while reading, its :class:`~shardcache.DamagedError`.
    """

    def __init__(
        self,
        cache: Cache | str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        order: str | None = None,
        shuffle_buffer: int | str | None = None,
        seed: int = 0,
        columns: Sequence[str | int] | str | int | None = None,
        decode: Mapping[str, str] | None = None,
        transform: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
        batch_transform: Callable[..., Any] | None = None,
        collate: str | Pad | Mapping[str, str | Pad] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        with_meta: bool = False,
        drop_last: bool = False,
        remainder: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        global_batch_size: int | None = None,
        canonical_ranks: int | None = None,
        epochs: int | None = 1,
        threads: int = 0,
        io: str | None = None,
        on_corrupt: str = "raise",
        transport: str = "auto",
    ) -> None:
        self.cache = _opened(cache, io)
        self._ranks, self._are_ranks_given = topology.ranks(rank, world_size), rank is not None
        self._shape = settings.batch_shape(
            self._ranks, batch_size, global_batch_size, canonical_ranks, drop_last, remainder
        )
        self._order = settings.check_order(shuffle, order)
        settings.check_buffer(shuffle_buffer)
        self._shuffle_buffer = shuffle_buffer
        if epochs is not None and (type(epochs) is not int or epochs < 1):
            raise UsageError(f"epochs must be 1 or more, or None for an endless iteration, was {epochs!r}")
        self._epochs_wanted = epochs
        if type(threads) is not int or threads < 0:
            raise UsageError(f"threads must be 0 or more, was {threads!r}")
        self._threads = threads
        if on_corrupt not in ("raise", "skip"):
            raise UsageError(f"on_corrupt must be 'raise' or 'skip', was {on_corrupt!r}")
        self._skips, self._board = on_corrupt == "skip", Board()
        fields = self.cache.schema.choose(columns)
        whole, by_column = recipes.transforms_of(transform)
        self._recipe = Recipe(
            cache=self.cache,
            fields=fields,
            seed=seed,
            batch_size=self._shape.batch_size,
            policies=Policies(collate),
            decoders=decoders_of(decode, fields),
            transform=whole,
            column_transforms=by_column,
            batch_transform=None if batch_transform is None else Transform(batch_transform, "batch_transform"),
            collate_fn=collate_fn,
            with_meta=with_meta,
            transport=transport,
        )
        self._epochs = Epochs()
        self._twins: weakref.WeakSet[CachedDataset] = weakref.WeakSet()  # of its loaders
        recipes.check(self._recipe)
        if self._shape.batch_size is not None and whole is None and collate_fn is None and collate is None:
            recipes.say_what_is_a_list(fields, by_column)
        if self._order == "source" and self.cache.manifest.layout != "source":
            settings.warn_of_source_order(self.cache.manifest, self._shape.share * self._shape.strands)

    def __len__(self) -> int:
        """Batches of an iteration on this rank; samples without ``batch_size``."""
        if self._epochs_wanted is None:
            raise TypeError("a CachedDataset(epochs=None) never ends: it has no len()")
        return self._epoch_steps * self._epochs_wanted

    @property
    def _epoch_steps(self) -> int:
        return self._plan(0).rank_steps(*self._ranks)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of iterations that begin from now on, in persistent workers too."""
        check_accelerate(self._ranks.world_size)
        self._epochs.set(epoch)
        for twin in list(self._twins):
            twin.set_epoch(epoch)

    def resume(self, *, epoch: int, step: int) -> None:
        """Begin the next iteration at a step of an epoch; later epochs are whole again.

        ``step`` counts the batches of this rank (samples without ``batch_size``) that were delivered before, by a
        number of workers that divides 48: those of any other are not the first ones of the epoch.
        """
        steps = self._epoch_steps * (self._epochs_wanted or 1)
        if type(step) is not int or not 0 <= step <= steps:
            raise UsageError(f"step must be 0..{steps}, the number of batches of an iteration, was {step!r}")
        self._epochs.set(epoch, step)

    def announced(self) -> AbstractContextManager[tuple[int, int]]:
        """For a loader: around what begins an iteration; (epoch, first step) of it."""
        self._check_ranks()
        return self._epochs.announced(self._is_shuffled)

    @property
    def _is_shuffled(self) -> bool:
        return self._order == "shuffled"

    def is_same_for(self, workers: int) -> bool:
        """Whether this number of workers delivers the batches in the order of a single one."""
        return self._plan(0).is_same_for(workers)

    def place(self, epoch: int, step: int) -> tuple[int, int]:
        """(epoch, step) where ``step`` has run on into later epochs of an iteration that never ends."""
        if self._epochs_wanted is not None:
            return epoch, step
        further, step = divmod(step, max(1, self._epoch_steps))
        return epoch + further, step

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, step) at which the next iteration begins."""
        return self._epochs.epoch, self._epochs.step

    def identity(self) -> dict[str, Any]:
        """What an order of batches is a function of, beside epoch and step: plain values."""
        order = self._plan(0).order
        return {
            "digest": self.cache.digest,
            "seed": order.seed,
            "order": self._order,
            "global_batch_size": order.share * order.strands,
            "canonical_ranks": order.strands,
            "remainder": order.remainder,
            "span": order.span if order.kind == "lanes" else None,
        }

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch on this rank; None where samples are yielded."""
        return self._shape.batch_size

    def order_of(self, epoch: int) -> Iterator[Integers]:
        """The indices in the cache of each step of an epoch on this rank; nothing is read for it."""
        plan = self._plan(epoch)
        reader, per_block = plan.reader(*self._ranks), self.cache.manifest.rows_per_block
        for step in plan.worker_steps(0, 1):
            rows = reader.rows([step])
            yield self.cache.indices_of(rows.block * per_block + rows.offset)

    @property
    def skipped(self) -> int:
        """Rows that ``on_corrupt="skip"`` replaced in the iterations of this dataset, in all workers of this rank.

        They count when they are read, which is ahead of delivery. A loader made by ``loader()`` has a count of its own.
        """
        return self._board.skipped

    @property
    def board(self) -> Board:
        """What the workers of this dataset report."""
        return self._board

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self._ranks.world_size

    def state_dict(self) -> dict[str, Any]:
        """There is none here: the training process cannot see how far a DataLoader's workers are."""
        raise UsageError(
            "a CachedDataset does not know how many batches were delivered: use loader = ds.loader(...) and "
            "loader.state_dict(), or count the steps yourself and call ds.resume(epoch=..., step=...)"
        )

    def loader(self, num_workers: int = 0, **options: Any) -> Loader:
        """A ``torch.utils.data.DataLoader`` over this dataset that has ``set_epoch`` and a state.

        ``options`` are the DataLoader's own: ``pin_memory``, ``prefetch_factor``, ``persistent_workers``, ...
        """
        twin = object.__new__(type(self))  # with epochs of its own: two loaders do not set each other's
        twin.__dict__.update(self.__dict__, _epochs=Epochs(*self.position), _board=Board(), _twins=weakref.WeakSet())
        self._twins.add(twin)
        return Loader(twin, num_workers=num_workers, **options)

    def __getstate__(self) -> dict[str, Any]:
        recipe = self._recipe
        calls = [recipe.transform, recipe.batch_transform, *recipe.column_transforms.values()]
        for name, call in [*((t.name, t.call) for t in calls if t is not None), ("collate_fn", recipe.collate_fn)]:
            check_picklable(name, call)
        return {name: value for name, value in self.__dict__.items() if name != "_twins"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _twins=weakref.WeakSet())

    def _plan(self, epoch: int) -> Plan:
        geometry, one = self.cache.geometry, settings.row_bytes(self.cache.manifest, self._recipe.fields)
        order = settings.epoch_order(
            geometry, one, self._shape, self._order, self._shuffle_buffer, self._recipe.seed, epoch
        )
        return Plan(geometry, order, self.cache.rows_of)

    def _check_ranks(self) -> None:
        if not self._are_ranks_given:
            topology.check_unchanged(self._ranks)

    def __iter__(self) -> Iterator[Any]:
        sends = check_caller(self._recipe.batch_size)
        self._check_ranks()
        worker = topology.worker()._replace(sends=sends)
        if worker.is_process:
            torch.set_num_threads(1)
            end_with_parent()
            self.cache.read_as_worker()
        epoch, start, announced = self._epochs.begin(worker)
        warn = self._is_shuffled and worker.number == 0 and not announced
        identity = {**self.identity(), "worker": worker.number, "workers": worker.workers}
        return Iteration(partial(self._run, worker, warn), epoch, start, identity)

    def _run(self, worker: topology.Worker, warn: bool, epoch: int, start: int, skip: int) -> Iterator[Any]:
        """What a worker yields from step ``start`` of an epoch on, without the first ``skip`` of it."""
        if warn and not skip:
            self._epochs.warn_of_repetition(epoch)
        yielded = 0
        last = math.inf if self._epochs_wanted is None else epoch + self._epochs_wanted - 1
        further, start = divmod(start, max(1, self._epoch_steps))
        epoch += further
        while epoch <= last:
            plan = self._plan(epoch)
            if worker.number == 0 and not yielded:
                settings.warn_of_workers(plan, worker.workers)
            steps = plan.worker_steps(worker.number, worker.workers, start, yielded)
            skip -= sum(1 for _ in islice(steps, skip))
            yield from self._produce(plan, epoch, steps, worker)
            yielded += plan.rank_steps(*self._ranks) - start
            epoch, start = epoch + 1, 0

    def _produce(self, plan: Plan, epoch: int, steps: Iterator[int], worker: topology.Worker) -> Iterator[Any]:
        """The steps of one epoch that belong to a worker."""
        threads = 1 if plan.order.kind == "full" else max(1, self._threads)
        lanes, strands = -(-plan.lanes // (worker.workers * threads)), self._shape.strands // self._ranks.world_size
        slots = settings.slots(plan, lanes, strands, self._recipe.batch_size or self._recipe.steps_at_once)
        keep = plan.order.kind != "lanes"
        watch = self._board.watch(worker.number, self.cache.manifest.blocks_per_shard, skip=self._skips)
        pipelines = [
            Pipeline(self._recipe, plan.reader(*self._ranks), epoch, slots, keep=keep, watch=watch, sends=worker.sends)
            for _ in range(threads)
        ]
        if not self._threads:
            return pipelines[0].run(steps)
        of_thread = 1 if worker.is_process else self._recipe.steps_ahead  # there, the DataLoader takes one by one
        round_steps = max(self._recipe.steps_at_once, threads * max(of_thread, plan.run_steps))
        return run_ahead(pipelines, lambda step: plan.thread_of(step, worker.workers, threads), steps, round_steps)


def _opened(cache: Any, io: str | None) -> Cache:
    if isinstance(cache, Cache):
        return cache if io is None else cache.with_io(io)
    if isinstance(cache, (str, os.PathLike)):
        return caches.open(cache, io=io or "auto")
    raise UsageError(
        f"CachedDataset reads a cache, was given a {type(cache).__qualname__}: build one first, "
        "cache = shardcache.build(dataset, 'caches/train')"
    )
