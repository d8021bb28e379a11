"""One epoch in one worker: rows of the plan -> blocks in the arena -> values -> transforms -> batches or samples."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch

from shardcache.format.permutation import Integers
from shardcache.format.schema import ABSENT
from shardcache.read import collate, transforms
from shardcache.read.arena import Arena
from shardcache.read.cache import Cache
from shardcache.read.collate import Meta, Policies
from shardcache.read.fields import LIST, RAGGED, TENSOR, Assembler, Field
from shardcache.read.plan import PlanReader
from shardcache.read.strand import Rows
from shardcache.read.transforms import Transform
from shardcache.read.transport import transport

SAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class Recipe:
    """What to make of the rows: the same for every epoch and worker."""

    cache: Cache
    fields: tuple[Field, ...]
    seed: int
    batch_size: int | None
    policies: Policies
    transform: Transform | None
    column_transforms: Mapping[str, Transform]
    batch_transform: Transform | None
    collate_fn: Callable[[list[Any]], Any] | None
    with_meta: bool
    transport: str

    @property
    def makes_samples(self) -> bool:
        """Whether whole samples are built, one by one, on the way to what is yielded."""
        return self.batch_size is None or self.transform is not None or self.collate_fn is not None

    @property
    def draws(self) -> bool:
        """Whether a transform may draw from the global generators."""
        calls = [self.transform, self.batch_transform, *self.column_transforms.values()]
        return any(call is not None and not call.takes_rng for call in calls)


class Pipeline:
    """Makes what is yielded from the rows that ``reader`` gives; its buffer holds ``slots`` blocks."""

    def __init__(self, recipe: Recipe, reader: PlanReader, epoch: int, slots: int, *, keep: bool) -> None:
        self._recipe, self._reader, self._epoch = recipe, reader, epoch
        self._fields = [self._as_read(field) for field in recipe.fields]
        self._assembler = Assembler(recipe.cache.manifest, recipe.fields, recipe.cache.types)
        self._arena = Arena(recipe.cache.blocks, self._fields, slots, keep=keep)
        self._joiners = {f.position: self._assembler.field_joiner(f) for f in recipe.fields if len(f.positions) > 1}
        self._transport = transport(recipe.transport)
        self._guard: Callable[[], Any] = transforms.global_generators_kept if recipe.draws else nullcontext

    def _as_read(self, field: Field) -> Field:
        """A field whose values are needed one by one is not gathered to a tensor."""
        if self._recipe.makes_samples or field.name in self._recipe.column_transforms:
            return dataclasses.replace(field, batch=LIST)
        if field.batch == TENSOR and self._recipe.policies.of(field.name, varies=False) != "stack":
            return dataclasses.replace(field, batch=RAGGED if field.type in ("tensor", "array") else LIST)
        return field

    def run(self, steps: Iterable[int]) -> Iterator[Any]:
        """What is yielded for the steps."""
        if self._recipe.batch_size is None:
            steps = iter(steps)
            chunks = iter(lambda: list(islice(steps, SAMPLES_AT_ONCE)), [])
            return chain.from_iterable(map(self._samples_of, chunks))
        return (batch for step in steps for batch in self._batches_of(step))

    def _samples_of(self, steps: list[int]) -> list[Any]:
        rows = self._reader.rows(steps)
        index = self._source_indices(rows)
        with self._guard():
            samples = self._samples(rows, index)
        if not self._recipe.with_meta:
            return samples
        metas = zip(index.tolist(), rows.valid.tolist(), strict=True)
        return [(sample, Meta(*meta)) for sample, meta in zip(samples, metas, strict=True)]

    def _batches_of(self, step: int) -> list[Any]:
        """The batch of a step; none where this rank has no rows of it."""
        rows = self._reader.rows([step])
        if not len(rows.block):
            return []
        recipe = self._recipe
        index = self._source_indices(rows)
        with self._guard():
            if not recipe.makes_samples:
                batch = self._batch(rows, index)
            else:
                samples = self._samples(rows, index)
                batch = self._collated(samples)
            if recipe.batch_transform is not None:
                with transforms.blamed_on(f"batch_transform on epoch {self._epoch}, step {step}"):
                    batch = recipe.batch_transform.apply(batch, transforms.sample_key(~recipe.seed, self._epoch, step))
        if recipe.with_meta:
            return [(batch, Meta(torch.from_numpy(index), torch.from_numpy(rows.valid)))]
        return [batch]

    def _source_indices(self, rows: Rows) -> Integers:
        recipe = self._recipe
        if not (recipe.with_meta or recipe.transform or recipe.column_transforms):
            return rows.block  # nobody looks
        return recipe.cache.source_indices(rows.block * recipe.cache.manifest.rows_per_block + rows.offset)

    def _collated(self, samples: list[Any]) -> Any:
        if self._recipe.collate_fn is None:
            return collate.collate_samples(samples, self._recipe.policies)
        with transforms.blamed_on("collate_fn"):
            return self._recipe.collate_fn(samples)

    def _batch(self, rows: Rows, index: Integers) -> Any:
        """Fixed fields are gathered, column by column; the others are lists of values."""
        tensors = [field for field in self._fields if field.batch == TENSOR]
        lists = [field for field in self._fields if field.batch != TENSOR]
        shapes = [(collate.torch_dtype(field), (len(rows.block), *field.shape)) for field in tensors]
        outs = self._transport.batch(shapes)  # type: ignore[arg-type]
        values: list[list[Any]] = [[] for _ in lists]
        for part, run in self._arena.runs(rows):
            places = self._arena.load(run)
            for field, out in zip(tensors, outs, strict=True):
                self._arena.gather(field, places, out[part])
            for field, column in zip(lists, values, strict=True):
                column += self._values(field, places, run, index[part])
            self._arena.release(run)
        entries: dict[int, Any] = {}
        for field, out in zip(tensors, outs, strict=True):
            entries[field.position] = collate.native(field, out)
        for field, column in zip(lists, values, strict=True):
            column = [None if value is ABSENT else value for value in column]
            if field.name in self._recipe.column_transforms:
                entries[field.position] = collate.collate_values(field.name, column, self._recipe.policies)
            else:
                entries[field.position] = collate.list_column(field, column, self._recipe.policies)
        return self._assembler.join(entries)

    def _samples(self, rows: Rows, index: Integers) -> list[Any]:
        """The samples of some rows, as they went in, transformed."""
        samples: list[Any] = []
        for part, run in self._arena.runs(rows):
            places = self._arena.load(run)
            columns = [self._values(field, places, run, index[part]) for field in self._fields]
            at = [field.position for field in self._fields]
            samples += [self._assembler.join(dict(zip(at, row, strict=True))) for row in zip(*columns, strict=True)]
            self._arena.release(run)
        transform = self._recipe.transform
        if transform is not None:
            samples = self._applied(transform, samples, index)
        return samples

    def _values(self, field: Field, places: Integers, rows: Rows, index: Integers) -> list[Any]:
        """The values of a field, one a row, transformed where it has a transform."""
        columns = [self._arena.values(position, places, rows) for position in field.positions]
        values = columns[0]
        if len(columns) > 1:
            join, before = self._joiners[field.position], [ABSENT] * field.position
            values = [join([*before, *row]) for row in zip(*columns, strict=True)]
        transform = self._recipe.column_transforms.get(field.name)
        return values if transform is None else self._applied(transform, values, index)

    def _applied(self, transform: Transform, values: list[Any], index: Integers) -> list[Any]:
        out = []
        seed, epoch = self._recipe.seed, self._epoch
        for value, source in zip(values, index.tolist(), strict=True):
            with transforms.blamed_on(f"{transform.name} of sample {source}"):
                out.append(transform.apply(value, transforms.sample_key(seed, epoch, source)))
        return out
