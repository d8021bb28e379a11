"""One shard: its rows are read from the source, laid into blocks, and written to a file."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shardcache.builder.encode import BlockEncoder
from shardcache.builder.source import Source
from shardcache.builder.tolerance import Block, merged, note
from shardcache.format import block, spec
from shardcache.format.block import Place
from shardcache.format.files import storage_errors
from shardcache.format.manifest import ColumnTotals, Manifest
from shardcache.format.pages import ShardSeal
from shardcache.format.provenance import SkipNote
from shardcache.format.shard import ShardWriter
from shardcache.format.split import block_splitter

_INDEX_LEVEL = 3
_SLOW_SECONDS = 1.0


class ShardRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest will say of a finished shard; ``skipped`` are rows of the cache, ``notes`` say why."""

    number: int
    seal: ShardSeal
    totals: tuple[ColumnTotals, ...]
    rows: int = 0
    skipped: tuple[int, ...] = ()
    notes: tuple[SkipNote, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """How far a shard is: its samples that were read, their bytes before and after compression.

    ``skipped`` is what was skipped since the last report.
    """

    shard: int
    samples: int
    raw_bytes: int
    stored_bytes: int
    skipped: tuple[SkipNote, ...] = ()


def build_shard(
    source: Source, plan: Manifest, number: int, directory: Path, report: Callable[[Report], None]
) -> ShardRecord:
    """Write shard ``number`` of ``plan`` into ``directory``; whatever goes wrong, no part of it stays there."""
    return write_shard(source, plan, number, directory, report).finish()


class WrittenShard:
    """A shard whose rows are all in its file; that is to be flushed, and read once, before it counts."""

    def __init__(self, writer: ShardWriter, finished: Callable[[ShardSeal], ShardRecord]) -> None:
        self._writer, self._finished = writer, finished

    def finish(self) -> ShardRecord:
        """Flush it to the disk and say what it is; may be called in another thread."""
        with self._writer:
            return self._finished(self._writer.finish())


def write_shard(
    source: Source, plan: Manifest, number: int, directory: Path, report: Callable[[Report], None]
) -> WrittenShard:
    """Write the rows of shard ``number``; where that fails, no part of it stays there."""
    cache_id = bytes.fromhex(plan.cache_id)
    encoder = BlockEncoder(plan.columns, cache_id, number)
    split = block_splitter(plan.structure)
    known = _skipped_rows(plan, number)
    rows, skipped = 0, list[int]()
    notes: tuple[SkipNote, ...] = ()
    path = directory / spec.shard_name(number)
    with storage_errors(path):
        path.with_suffix(".json").unlink(missing_ok=True)  # a record of what is not there any more
        path.unlink(missing_ok=True)  # what a worker left that was killed at it

    def say(rows: int, new: tuple[SkipNote, ...]) -> None:
        report(Report(number, rows, sum(encoder.raw_bytes), sum(encoder.stored_bytes), new))

    reader = _Reader(source, say)
    with ExitStack() as failing:
        writer = failing.enter_context(ShardWriter(path))
        for local, indices in enumerate(source.blocks(plan, number)):
            rows += len(indices)
            first = (number * plan.blocks_per_shard + local) * plan.rows_per_block
            samples = Block(indices, source.tolerance.skips)
            samples.read(reader.read, {row - first for row in known} if known else ())
            for key, value in encoder.seal(local, samples.encoded(plan.columns, split)):
                writer.put(key, value)
            new = tuple(note(indices[place], error) for place, error in sorted(samples.errors.items()))
            skipped += [first + place for place in sorted(samples.errors)]
            notes = merged([*notes, *new]) if new else notes
            reader.block(len(indices), new)
        place = Place(cache_id, number, spec.INDEX_KEY)
        writer.put(spec.INDEX_KEY, block.seal(bytes(encoder.index), _INDEX_LEVEL, place))
        writer.close()
        failing.pop_all()
    totals = zip(encoder.forms, encoder.raw_bytes, encoder.stored_bytes, strict=True)
    summed = tuple(ColumnTotals(tuple(sorted(forms)), raw, st) for forms, raw, st in totals)
    return WrittenShard(writer, lambda seal: ShardRecord(number, seal, summed, rows, tuple(skipped), notes))


def _skipped_rows(plan: Manifest, number: int) -> list[int]:
    """The rows of a shard that were skipped when it was built before: a repair does not read them."""
    rows, size = plan.skipped_rows(), plan.blocks_per_shard * plan.rows_per_block
    first, end = np.searchsorted(rows, [number * size, (number + 1) * size])
    found: list[int] = rows[first:end].tolist()
    return found


def finished(record: ShardRecord) -> Report:
    """The last report of a shard."""
    raw, stored = (sum(getattr(one, name) for one in record.totals) for name in ("raw_bytes", "stored_bytes"))
    return Report(record.number, record.rows, raw, stored)


class _Reader:
    """Reads samples and says how many; after each block, and now and then within it where samples are slow."""

    def __init__(self, source: Source, say: Callable[[int, tuple[SkipNote, ...]], None]) -> None:
        self._source, self._say = source, say
        self._rows, self._here, self._due = 0, 0, time.monotonic() + _SLOW_SECONDS

    def read(self, index: int) -> Any:
        sample = self._source.read(index)
        self._here += 1
        if time.monotonic() > self._due:
            self._tell(self._rows + self._here)
        return sample

    def block(self, rows: int, skipped: tuple[SkipNote, ...]) -> None:
        """A block of so many rows is done."""
        self._rows, self._here = self._rows + rows, 0
        self._tell(self._rows, skipped)

    def _tell(self, rows: int, skipped: tuple[SkipNote, ...] = ()) -> None:
        self._say(rows, skipped)
        self._due = time.monotonic() + _SLOW_SECONDS
