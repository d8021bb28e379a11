"""Before the long work: how large a cache will be and how long it will take, from real samples.

Nothing here decides about the bytes of a cache, so it may look at a clock.
"""

import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shardcache.builder.engine import Engine
from shardcache.builder.locality import Locality
from shardcache.builder.probe import Options, draw_up
from shardcache.builder.randomness import Twice, undisturbed
from shardcache.builder.source import Recipe, Source
from shardcache.builder.stream import Stream
from shardcache.builder.tolerance import Tolerance
from shardcache.errors import StorageError, UsageError
from shardcache.format import columns, compression
from shardcache.format.block import PREFIX_BYTES
from shardcache.format.files import directory_of
from shardcache.format.manifest import Manifest
from shardcache.format.schema import Column
from shardcache.format.shard import page_bytes
from shardcache.format.split import block_splitter
from shardcache.wording import count, duration, ratio, saving, size

MARGIN = 1.1
_SHOWN = 8
_MAX_BYTES = 8 << 20  # of a column are compressed to see what it comes to
_NODE_BYTES = 24  # of a key and what LMDB writes beside it
_WRITE_SPEED = 4e8  # bytes a second: hashed, written, read back


class ColumnEstimate(msgspec.Struct, frozen=True):
    """What one column will come to, in bytes; ``why`` says how its codec was chosen."""

    name: str
    type: str
    codec: str
    why: str
    raw_bytes: int
    stored_bytes: int


class Estimate(msgspec.Struct, frozen=True):
    """What a build will make and take, from real samples.

    Attributes:
        samples, shards, rows_per_block, layout: of the cache.
        raw_bytes: before compression. ``file_bytes``: on disk.
        seconds: of the build, with ``num_workers``.
        free_bytes: where the cache goes; None where no path was given.
        scattered_ms, neighbouring_ms: milliseconds a sample, read at random and after its neighbour; None of a dataset
            too small to tell.
        random: the columns that differed when samples were read twice: such a dataset is refused.
        columns: what each column will come to.
    """

    samples: int
    shards: int
    rows_per_block: int
    layout: str
    num_workers: int
    raw_bytes: int
    file_bytes: int
    seconds: float
    free_bytes: int | None
    scattered_ms: float | None
    neighbouring_ms: float | None
    random: tuple[str, ...]
    columns: tuple[ColumnEstimate, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    def __str__(self) -> str:
        what = f"about {saving(self.raw_bytes, self.file_bytes)}, about {duration(self.seconds)}"
        made_by = f" with {count(self.num_workers, 'worker')}" if self.num_workers else ""
        return f"{count(self.samples, 'sample')} in {count(self.shards, 'shard')}, {what}{made_by}"

    def describe(self) -> str:
        """The columns in words, in one line."""
        shown = [one for one in self.columns if one.raw_bytes]
        more = [f"and {count(len(shown) - _SHOWN, 'column')} more"] if len(shown) > _SHOWN else []
        return "; ".join([f"{one.name}: {one.codec}, {_why(one)}" for one in shown[:_SHOWN]] + more)


def _why(column: ColumnEstimate) -> str:
    came_to = f"ratio {ratio(column.raw_bytes, column.stored_bytes)}"
    return column.why if "ratio" in column.why else f"{came_to} ({column.why})"


def estimate(
    dataset: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    layout: str | None = None,
    seed: int = 0,
    shuffle_window: int | None = None,
    codec: str | Mapping[str, str] = "auto",
    num_workers: int = 0,
    on_error: str = "raise",
    max_errors: int | None = None,
    block_bytes: int | None = None,
) -> Estimate:
    """How large a cache would be and how long its build would take; nothing is written.

    Some hundred samples are read, in a second or two where they are fast. Global generators of random numbers are as
    they were afterwards.

    Args:
        dataset: as in :func:`~shardcache.build`, like all that follow.
        path: where the cache would go, to learn what is free there.
        kwargs: arguments for a callable that makes the dataset.
        layout: ``"shuffled"``, ``"source"`` or ``"window"``.
        seed: of the shuffled layout and of windows.
        shuffle_window: samples of a window.
        codec: ``"auto"``, one for all columns, or a dict.
        num_workers: how many processes would share the work.
        on_error: with ``"skip"``, samples that cannot be read or stored are passed over.
        max_errors: how many of them the build would bear.
        block_bytes: raw bytes of a block.

    Raises:
        UsageError: an argument is wrong, or the dataset can only be iterated.
        SourceError: the dataset is empty, or a sample cannot be read or stored.

    Warns:
        ShardCacheWarning: the dataset is much slower at random than in its own order.
    """
    options, tolerance = Options(layout, seed, codec, block_bytes, shuffle_window), Tolerance(on_error, max_errors)
    options.check()
    tolerance.check()
    Engine(num_workers).check()
    with undisturbed():
        source = Recipe(dataset, kwargs, tolerance).source()
        if isinstance(source, Stream):
            raise UsageError("a dataset that can only be iterated has no length: nothing can be estimated of it")
        survey = Survey(source, draw_up(source, options.for_source(source)), num_workers)
        survey.warn()
        return survey.estimate(None if path is None else free_bytes(directory_of(path)))


class Survey:
    """What the samples of a probe tell about a build beside its plan; ``resumed``: it was looked at before."""

    def __init__(self, source: Source, plan: Manifest, num_workers: int, resumed: bool = False) -> None:
        self._plan, self._num_workers = plan, num_workers
        with undisturbed():
            self.twice = Twice(source, plan)
            self._locality = None if resumed else Locality(source)
        parts = block_splitter(plan.structure)(list(source.kept.values()))
        self._sizes = [_size_of(plan, column, part or ()) for column, part in zip(plan.columns, parts, strict=True)]

    def warn(self) -> None:
        """Of what is slower than it need be."""
        if self._plan.layout == "shuffled" and self._locality is not None:
            self._locality.warn(self._plan.samples, self._num_workers)

    def estimate(self, free: int | None) -> Estimate:
        plan, shards = self._plan, self._plan.shard_count
        each = [
            ColumnEstimate(column.name, column.type, column.codec, column.why, round(found.raw), round(found.stored))
            for column, found in zip(plan.columns, self._sizes, strict=True)
        ]
        files = sum(found.on_disk for found in self._sizes) + 4 * page_bytes() * shards
        scattered, neighbouring = self._milliseconds()
        reads = scattered if plan.layout == "shuffled" else neighbouring
        reading = statistics.fmean(self.twice.seconds or [0]) if reads is None else reads / 1000
        workers = max(1, min(self._num_workers, shards, os.cpu_count() or 1))
        seconds = (
            plan.samples * (reading + sum(found.seconds for found in self._sizes)) / workers + files / _WRITE_SPEED
        )
        return Estimate(
            samples=plan.samples,
            shards=shards,
            rows_per_block=plan.rows_per_block,
            layout=plan.layout,
            num_workers=self._num_workers,
            raw_bytes=sum(one.raw_bytes for one in each),
            file_bytes=round(files),
            seconds=round(seconds, 3),
            free_bytes=free,
            scattered_ms=scattered,
            neighbouring_ms=neighbouring,
            random=tuple(self.twice.differing),
            columns=tuple(each),
        )

    def _milliseconds(self) -> tuple[float | None, float | None]:
        if self._locality is None or not self._locality.scattered:
            return None, None
        scattered, neighbouring = map(statistics.fmean, (self._locality.scattered, self._locality.neighbouring))
        return round(1000 * scattered, 4), round(1000 * neighbouring, 4)


class _Size(msgspec.Struct):
    """What a column comes to in the whole cache, in bytes, and the seconds that it takes to encode one row."""

    raw: float
    stored: float
    on_disk: float
    seconds: float


class _Packer:
    """Sizes after compression; when enough was compressed, by the ratio that it had."""

    def __init__(self, codec: str) -> None:
        self._level, self.raw, self.packed, self.seconds = compression.parse_codec(codec), 0, 0, 0.0

    def __call__(self, body: bytes) -> float:
        if self._level is None:
            return len(body)
        if self.raw > _MAX_BYTES:
            return len(body) * self.packed / self.raw
        start = time.perf_counter()
        packed = min(len(body), len(compression.compress(body, self._level)))
        self.seconds += time.perf_counter() - start
        self.raw, self.packed = self.raw + len(body), self.packed + packed
        return packed


def _size_of(plan: Manifest, column: Column, values: Sequence[Any]) -> _Size:
    """From its values in the samples, cut into blocks as the build will."""
    packed, start = _Packer(column.codec), time.perf_counter()
    found = _Size(0, 0, 0, 0)
    for first in range(0, len(values), plan.rows_per_block):
        block = values[first : first + plan.rows_per_block]
        encoded = columns.encode(column, block)
        if encoded is None:
            continue
        share = len(block) / plan.rows_per_block  # a block that is not whole is a part of a larger value
        for number, body in enumerate([encoded.body, *encoded.large_rows.values()]):
            value = packed(body) + PREFIX_BYTES
            found.raw += len(body)
            found.stored += value
            found.on_disk += _on_disk(value, 1 if number else share)
    encoding = time.perf_counter() - start - packed.seconds
    found.seconds = encoding + packed.seconds * found.raw / max(1, packed.raw)
    rows = max(1, len(values))
    scale = plan.samples / rows
    return _Size(found.raw * scale, found.stored * scale, found.on_disk * scale, found.seconds / rows)


def _on_disk(value: float, share: float) -> float:
    """Bytes that LMDB takes for ``share`` of a value: a large one has whole pages of its own."""
    whole = value / share
    if whole < page_bytes() // 2 - _NODE_BYTES:
        return share * (whole + _NODE_BYTES)
    return share * (-(-(whole + _NODE_BYTES) // page_bytes()) * page_bytes() + 2 * _NODE_BYTES)


def free_bytes(path: Path) -> int:
    """What is free on the file system where ``path`` is, or will be."""
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        return shutil.disk_usage(path).free
    except OSError as error:
        raise StorageError(f"{path}: cannot be looked at ({error.strerror or error})") from error


def check_room(expected: Estimate, target: Path, rows: int) -> None:
    """:class:`StorageError` where what the ``rows`` samples that are still to be written take is not free."""
    needed, free = round(expected.file_bytes * rows / expected.samples * MARGIN), expected.free_bytes
    if free is not None and needed > free:
        raise StorageError(
            f"{target}: the disk is full before it is done: about {size(needed)} are needed (with a margin of "
            f"{MARGIN - 1:.0%}), {size(free)} are free. Make room, build elsewhere, or begin all the same with "
            "force=True (--force)"
        )
