"""One epoch in one worker: rows of the plan -> blocks in the arena -> values -> transforms -> batches or samples."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from shardcache.format.permutation import Integers
from shardcache.format.schema import ABSENT
from shardcache.read import collate, heap, transforms
from shardcache.read.arena import Out, Values, buffer_for
from shardcache.read.collate import Meta
from shardcache.read.fields import LIST, RAGGED, TENSOR, Assembler, Field
from shardcache.read.geometry import Flags
from shardcache.read.parcels import Buffers
from shardcache.read.plan import PlanReader
from shardcache.read.recipe import Recipe
from shardcache.read.stand_in import StandIns
from shardcache.read.strand import Rows
from shardcache.read.transforms import Transform
from shardcache.read.transport import RingTransport, transport
from shardcache.read.watch import Watch

_LARGE_ROW_BYTES = 16 << 10


class Draft(NamedTuple):
    """The rows of some steps, read and decoded: what is left to do with them may be the user's own code.

    ``columns`` has an entry for each field, by position: a tensor, or the list of its values.
    """

    steps: list[int]
    sources: Integers
    valid: Flags
    columns: dict[int, Any]


class Pipeline:
    """Makes what is yielded from the rows that ``reader`` gives; its buffer holds ``slots`` blocks.

    :meth:`draft` reads and decodes, and may run in another thread; :meth:`finish` transforms and collates. What a
    worker process ``sends`` as it is may hold stand-ins for lists (:mod:`shardcache.read.parcels`).
    """

    def __init__(
        self,
        recipe: Recipe,
        reader: PlanReader,
        epoch: int,
        slots: int,
        *,
        keep: bool,
        watch: Watch,
        sends: bool = False,
    ) -> None:
        self._recipe, self._reader, self._epoch = recipe, reader, epoch
        self._fields = [self._as_read(field) for field in recipe.fields]
        self._gathered = [field for field in recipe.fields if field.batch == TENSOR]
        self._as_tensor = [field.position for field in self._fields if field.batch == TENSOR]
        self._assembler = Assembler(recipe.cache.manifest, recipe.fields, recipe.cache.types)
        blocks = recipe.cache.blocks
        self._transport = transport(recipe.transport, recipe.memory)
        self._views = self._sent_as_views(watch) if sends else frozenset()
        self._buffer = buffer_for(blocks, recipe.fields, slots, keep=keep, watch=watch, views=self._views)
        self._stand_ins = StandIns(blocks, recipe.cache.geometry, recipe.fields, watch)
        self._joiners = {f.position: self._assembler.field_joiner(f) for f in recipe.fields if len(f.positions) > 1}
        heap.keep_room(recipe.bytes_at_once)
        self._guard: Callable[[], Any] = transforms.global_generators_kept if recipe.draws else nullcontext

    def _as_read(self, field: Field) -> Field:
        """A field whose values are needed one by one does not stay the tensor as which it was gathered."""
        if self._recipe.makes_samples or field.name in self._recipe.column_transforms:
            return dataclasses.replace(field, batch=LIST)
        if field.batch == TENSOR and self._recipe.policies.of(field.name, varies=False) != "stack":
            return dataclasses.replace(field, batch=RAGGED if field.type in ("tensor", "array") else LIST)
        return field

    def _sent_as_views(self, watch: Watch) -> frozenset[int]:
        """Bytes and texts that nobody sees before they are sent: no objects are made of them on this side."""
        recipe = self._recipe
        if not isinstance(self._transport, RingTransport) or recipe.makes_samples or recipe.batch_transform:
            return frozenset()
        if watch.skips or recipe.cache.types:  # a stand-in is a copy; a class of the user's may look at its fields
            return frozenset()
        changed = {*recipe.column_transforms, *recipe.decoders, *recipe.policies.named}
        chosen = [field for field in recipe.fields if field.type in ("bytes", "str") and field.name not in changed]
        return frozenset(field.position for field in chosen if len(field.positions) == 1)

    def run(self, steps: Iterable[int]) -> Iterator[Any]:
        """What is yielded for the steps."""
        return chain.from_iterable(self.finish(self.draft(*some)) for some in self.portions(steps))

    def portions(self, steps: Iterable[int]) -> Iterator[tuple[list[int], Rows]]:
        """The steps and their rows in portions that are read together: each by itself, or many where each is a sample.

        The plan is asked for many steps at once; first for few, since somebody waits for the first batch.
        """
        steps, at_once = iter(steps), self._recipe.steps_at_once
        planned = at_once
        while some := list(islice(steps, planned)):
            rows = self._reader.rows(some)
            if len(some) <= at_once:
                yield some, rows
            else:
                ends = self._reader.ends(some)
                for start in range(0, len(some), at_once):
                    stop = min(start + at_once, len(some))
                    yield some[start:stop], rows.part(slice(ends[start], ends[stop]))
            planned = max(at_once, min(2 * planned, self._recipe.steps_planned))

    def draft(self, steps: list[int], rows: Rows) -> Draft:
        """The rows of some steps, decoded."""
        outs = self._outs(len(rows.block))
        gathered = [outs[field.position] for field in self._gathered]
        values = self._buffer.take(rows, gathered)
        if len(self._buffer.lost):
            rows = self._stand_ins.fill(rows, gathered, values, self._buffer.lost)
        columns: dict[int, Any] = {}
        sources = self._indices(rows)
        for field in self._fields:
            out = outs.get(field.position)
            if out is None:
                columns[field.position] = self._joined(field, values)
            elif isinstance(out, list):
                columns[field.position] = collate.apart(field, out)
            elif field.position in self._as_tensor:
                columns[field.position] = collate.native(field, out)
            else:
                columns[field.position] = collate.rows_of(field, out)
            if field.name in self._recipe.decoders:
                columns[field.position] = self._recipe.decoders[field.name].all(columns[field.position], sources)
        return Draft(steps, sources, rows.valid, columns)

    def _outs(self, rows: int) -> dict[int, Out]:
        """What to fill for each fixed field: a tensor where batches are made, or ordinary memory if it is taken apart.

        Rows that are large are not gathered before they are taken apart: each goes straight into memory of its own.
        """
        shapes = {f.position: (collate.torch_dtype(f), (rows, *f.fixed_shape)) for f in self._gathered}
        yielded = self._transport.batch([shapes[position] for position in self._as_tensor])
        outs: dict[int, Out] = dict(zip(self._as_tensor, yielded, strict=True))
        for field in self._gathered:
            if field.position not in outs:
                dtype, shape = shapes[field.position]
                if field.type in ("tensor", "array") and math.prod(shape[1:]) * dtype.itemsize >= _LARGE_ROW_BYTES:
                    outs[field.position] = self._transport.each(rows, dtype, shape[1:])
                else:
                    outs[field.position] = torch.empty(shape, dtype=dtype)
        return outs

    def _joined(self, field: Field, values: Values) -> list[Any]:
        """The values of a field, one a row."""
        columns = [values[position] for position in field.positions]
        if len(columns) == 1:
            return columns[0]
        join, before = self._joiners[field.position], [ABSENT] * field.position
        return [join([*before, *row]) for row in zip(*columns, strict=True)]

    def _indices(self, rows: Rows) -> Integers:
        recipe = self._recipe
        if not (recipe.with_meta or recipe.transform or recipe.column_transforms or recipe.decoders):
            return rows.block  # nobody looks
        return recipe.cache.indices_of(rows.block * recipe.cache.manifest.rows_per_block + rows.offset)

    def finish(self, draft: Draft) -> list[Any]:
        """What is yielded for a draft: its samples; or its batch, and nothing where this rank has no rows of it."""
        if not len(draft.valid):
            return []
        with self._guard():
            if self._recipe.batch_size is None:
                samples = self._samples(draft)
            else:
                batch = self._collated(self._samples(draft)) if self._recipe.makes_samples else self._batch(draft)
                batch = self._transformed(batch, draft.steps[0])
        if self._recipe.batch_size is None:
            if not self._recipe.with_meta:
                return samples
            metas = zip(draft.sources.tolist(), draft.valid.tolist(), strict=True)
            return [(sample, Meta(*meta)) for sample, meta in zip(samples, metas, strict=True)]
        if self._recipe.with_meta:
            return [(batch, Meta(torch.from_numpy(draft.sources), torch.from_numpy(draft.valid)))]
        return [batch]

    def _collated(self, samples: list[Any]) -> Any:
        if self._recipe.collate_fn is None:
            return collate.collate_samples(samples, self._recipe.policies)
        with transforms.blamed_on("collate_fn"):
            return self._recipe.collate_fn(samples)

    def _transformed(self, batch: Any, step: int) -> Any:
        transform = self._recipe.batch_transform
        if transform is None:
            return batch
        with transforms.blamed_on(f"batch_transform on epoch {self._epoch}, step {step}"):
            return transform.apply(batch, transforms.sample_key(~self._recipe.seed, self._epoch, step))

    def _batch(self, draft: Draft) -> Any:
        """Fixed fields are tensors already; the others are lists of values."""
        entries: dict[int, Any] = {}
        for field in self._fields:
            column = draft.columns[field.position]
            if field.batch == TENSOR:
                entries[field.position] = column
                continue
            transform = self._recipe.column_transforms.get(field.name)
            if transform is not None:
                column = self._applied(transform, column, draft.sources)
            column = [None if value is ABSENT else value for value in column]
            if field.position in self._views:
                entries[field.position] = Buffers.of(column, is_text=field.type == "str")
                continue
            as_batch = (
                collate.list_column(field, column, self._recipe.policies)
                if transform is None and field.name not in self._recipe.decoders
                else collate.collate_values(field.name, column, self._recipe.policies)
            )
            entries[field.position] = as_batch
        return self._assembler.join(entries)

    def _samples(self, draft: Draft) -> list[Any]:
        """The samples of a draft, as they went in, transformed."""
        columns = {}
        for field in self._fields:
            transform, column = self._recipe.column_transforms.get(field.name), draft.columns[field.position]
            columns[field.position] = column if transform is None else self._applied(transform, column, draft.sources)
        samples = self._assembler.join_all(columns)
        transform = self._recipe.transform
        return samples if transform is None else self._applied(transform, samples, draft.sources)

    def _applied(self, transform: Transform, values: list[Any], index: Integers) -> list[Any]:
        out = []
        seed, epoch = self._recipe.seed, self._epoch
        for value, source in zip(values, index.tolist(), strict=True):
            with transforms.blamed_on(f"{transform.name} of sample {source}"):
                out.append(transform.apply(value, transforms.sample_key(seed, epoch, source)))
        return out
