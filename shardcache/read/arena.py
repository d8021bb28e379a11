"""The bounded shuffle buffer: decoded blocks in slots, from which batches are gathered.

A slot holds one block. Its fixed columns lie in one preallocated array a column, so that a batch is one gather a
column; its other columns are kept decoded beside it. A slot is used again when the last row of its block has been
delivered, the lowest free one first: memory that is never needed is never touched, and so is never resident.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from shardcache.errors import DamagedError, StructureError
from shardcache.format.columns import BlockRows, fixed_row_bytes
from shardcache.format.permutation import Integers
from shardcache.format.schema import ABSENT
from shardcache.read.blocks import Blocks
from shardcache.read.fields import TENSOR, Field
from shardcache.read.strand import Rows
from shardcache.read.watch import Watch

_WORDS = tuple(np.dtype(word) for word in ("u8", "u4", "u2", "u1"))

_NOTHING = np.empty(0, np.int64)

Values = dict[int, list[Any]]
Taker = Callable[[int], Any]
Out = torch.Tensor | list[torch.Tensor]  # where the rows of a fixed column go: one tensor for all, or each its own


class Arena:
    """Slots for ``slots`` blocks of the given fields.

    With ``keep`` a block stays until its slot is needed (the one that was used longest ago goes first); without, until
    its last row is taken.
    """

    def __init__(
        self,
        blocks: Blocks,
        fields: Sequence[Field],
        slots: int,
        *,
        keep: bool,
        watch: Watch | None = None,
        views: Collection[int] = (),
    ) -> None:
        self._blocks, self._keep, self._watch, self._views = blocks, keep, watch or Watch(), views
        self.lost = _NOTHING
        self._rows_per_block = blocks.manifest.rows_per_block
        self._fixed = {field.position: _Fixed(blocks, field, slots) for field in fields if field.batch == TENSOR}
        self._others = _other_columns(fields)
        self._slots = slots
        self._free = list(range(slots))
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # visit -> slot, the oldest first
        self._columns: list[dict[int, BlockRows]] = [{}] * slots
        self._takers: dict[int, list[Taker]] = {position: [_absent] * slots for position in self._others}
        self._unreadable: set[int] = set()  # slots

    def take(self, rows: Rows, outs: Sequence[Out]) -> Values:
        """Fill ``outs``, of each fixed field in their order, with ``rows``.

        Returns the values of the columns of all other fields: by position, one a row, ABSENT where there is none.
        ``lost`` is then the rows that could not be read; without a watch that skips them there are none.
        """
        values: Values = {position: [] for position in self._others}
        lost: set[int] = set()
        for part, run in self._runs(rows):
            places = self._load(run)
            if self._unreadable:
                slots = (places // self._rows_per_block).tolist()
                lost.update(part.start + row for row, slot in enumerate(slots) if slot in self._unreadable)
            for fixed, out in zip(self._fixed.values(), outs, strict=True):
                fixed.gather(places, out[part])
            for position, column in values.items():
                column += self._values(position, places, run, part.start, lost)
            self._release(run)
        self.lost = np.array(sorted(lost), np.int64) if lost else _NOTHING
        return values

    def _runs(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """``rows`` in runs whose blocks fit into the arena together; in most cases, one."""
        if not self._keep or len(rows.visit) <= self._slots or len(set(rows.visit.tolist())) <= self._slots:
            yield slice(0, len(rows.visit)), rows
            return
        for start in range(0, len(rows.visit), self._slots):
            part = slice(start, start + self._slots)
            yield part, rows.part(part)

    def _load(self, rows: Rows) -> Integers:
        """See that the blocks of ``rows`` are here; returns the place of each row (slot * rows a block + offset)."""
        order = np.argsort(rows.visit)  # np.unique would load numpy.ma into each worker
        visit = rows.visit[order]
        is_first = np.ones(len(order), bool)
        np.not_equal(visit[1:], visit[:-1], out=is_first[1:])
        first = order[is_first]
        visits = visit[is_first].tolist()
        slots = list(map(self._slot_of.get, visits))
        if self._keep:
            for visit, slot in zip(visits, slots, strict=True):
                if slot is not None:
                    self._slot_of.move_to_end(visit)
        for at, block in enumerate(rows.block[first].tolist()):
            if slots[at] is None:
                slots[at] = self._fill(visits[at], block)
        places = np.empty(len(order), np.int64)
        places[order] = np.array(slots, np.int64)[is_first.cumsum() - 1]
        places *= self._rows_per_block
        places += rows.offset
        return places

    def _release(self, rows: Rows) -> None:
        """Free the slots whose last row is among ``rows``."""
        if not self._keep:
            for visit in rows.visit[rows.last].tolist():
                slot = self._slot_of.pop(visit)
                self._hold(slot, {})
                heapq.heappush(self._free, slot)

    def _fill(self, visit: int, block: int) -> int:
        """Decode a block into a slot; which."""
        if self._free:
            slot = heapq.heappop(self._free)
        elif self._keep:
            _, slot = self._slot_of.popitem(last=False)
        else:
            slot = self._grow()
        count = self._blocks.manifest.block_rows(block)
        into = {position: fixed.memory(slot, count) for position, fixed in self._fixed.items()}
        self._watch.turn_to(block)
        try:
            self._hold(slot, self._blocks.read(block, self._others, into))
            self._unreadable.discard(slot)
        except DamagedError as error:
            self._watch.lose(block, count, error)
            self._hold(slot, {})
            self._unreadable.add(slot)
        self._slot_of[visit] = slot
        return slot

    def _hold(self, slot: int, columns: dict[int, BlockRows]) -> None:
        self._columns[slot] = columns
        for position, takers in self._takers.items():
            rows = columns.get(position)
            if rows is None:
                takers[slot] = _absent
            else:
                takers[slot] = rows.views() if position in self._views else rows.taker()

    def _grow(self) -> int:
        """More blocks at once than the plan's bound says (many short ones): a few slots more, rather than no batch."""
        slot, more = self._slots, max(4, self._slots // 4)
        for fixed in self._fixed.values():
            fixed.grow(self._slots + more)
        self._columns += [{}] * more
        for takers in self._takers.values():
            takers += [_absent] * more
        self._free = list(range(slot + 1, slot + more))
        self._slots += more
        return slot

    def _values(self, position: int, places: Integers, rows: Rows, start: int, lost: set[int]) -> list[Any]:
        """The values of a column at ``places``, where ``rows`` lie, the first of which is number ``start``."""
        slots, takers, values = (places // self._rows_per_block).tolist(), self._takers[position], list[Any]()
        with suppress(Exception):  # which is said below, with the place of the row
            return [takers[slot](offset) for slot, offset in zip(slots, rows.offset.tolist(), strict=True)]
        wanted = zip(slots, rows.block.tolist(), rows.offset.tolist(), strict=True)
        for row, (slot, block, offset) in enumerate(wanted, start):
            try:
                values.append(self._blocks.value(self._columns[slot], block, position, offset))
            except DamagedError as error:  # a value of its own in a sound block
                if not self._watch.skips:
                    raise
                self._watch.lose(block, 1, error)
                values.append(ABSENT)
                lost.add(row)
        return values


class Straight:
    """For blocks of one row: there is nothing to wait for, so it goes from its shard into the batch, in one copy."""

    def __init__(self, blocks: Blocks, fields: Sequence[Field], watch: Watch, views: Collection[int] = ()) -> None:
        self._blocks, self._watch, self._views = blocks, watch, views
        self.lost = _NOTHING
        self._fixed = [field.position for field in fields if field.batch == TENSOR]
        self._others = _other_columns(fields)

    def take(self, rows: Rows, outs: Sequence[Out]) -> Values:
        """As :meth:`Arena.take` does."""
        values: Values = {position: [] for position in self._others}
        memories, lost = [rows_of(out) for out in outs], []
        for row, block in enumerate(rows.block.tolist()):
            into = {position: memory[row].data for position, memory in zip(self._fixed, memories, strict=True)}
            self._watch.turn_to(block)
            try:
                columns = self._blocks.read(block, self._others, into)
                found = [self._value(columns, block, position) for position in values]
            except DamagedError as error:
                self._watch.lose(block, 1, error)
                found = [ABSENT] * len(values)
                lost.append(row)
            for column, value in zip(values.values(), found, strict=True):
                column.append(value)
        self.lost = np.array(lost, np.int64)
        return values

    def _value(self, columns: dict[int, BlockRows], block: int, position: int) -> Any:
        if position in self._views and position in columns:
            with suppress(Exception):  # which is said below
                return columns[position].views()(0)
        return self._blocks.value(columns, block, position, 0)


def buffer_for(
    blocks: Blocks,
    fields: Sequence[Field],
    slots: int,
    *,
    keep: bool,
    watch: Watch | None = None,
    views: Collection[int] = (),
) -> Arena | Straight:
    """What rows go through on their way into batches. Of columns in ``views``, bytes and texts may come as views."""
    if blocks.manifest.rows_per_block == 1:
        return Straight(blocks, fields, watch or Watch(), views)
    return Arena(blocks, fields, slots, keep=keep, watch=watch, views=views)


def _other_columns(fields: Sequence[Field]) -> list[int]:
    return sorted({at for field in fields if field.batch != TENSOR for at in field.positions})


def bytes_of(out: torch.Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The memory of a batch: a row of bytes for each of its rows."""
    return out.view(-1).view(torch.uint8).numpy().reshape(len(out), out.nbytes // max(1, len(out)))


def _absent(row: int) -> Any:  # noqa: ARG001
    return ABSENT


def rows_of(out: Out) -> "Sequence[np.ndarray[Any, np.dtype[np.uint8]]]":
    """The memory of each row."""
    return [bytes_of(row.unsqueeze(0))[0] for row in out] if isinstance(out, list) else list(bytes_of(out))


class _Fixed:
    """The rows of one fixed column, in one array of machine words that any dtype can be gathered through."""

    def __init__(self, blocks: Blocks, field: Field, slots: int) -> None:
        self._name = field.name
        self._row_bytes = fixed_row_bytes(blocks.manifest.columns[field.position])
        self._rows = blocks.manifest.rows_per_block
        self._word = next(word for word in _WORDS if self._row_bytes % word.itemsize == 0)
        self._bytes = np.empty(0, np.uint8)
        self.grow(slots)

    def grow(self, slots: int) -> None:
        count = slots * self._rows * self._row_bytes
        try:
            old, self._bytes = self._bytes, np.empty(count, np.uint8)
        except (MemoryError, ValueError):  # NumPy's own limit is a ValueError
            raise StructureError(
                f"column {self._name!r}: a shuffle buffer of {slots} blocks of {self._rows} rows of {self._row_bytes} "
                f"bytes needs {count} bytes, more than there is (is the manifest true? a smaller shuffle_buffer?)"
            ) from None
        self._bytes[: len(old)] = old
        if self._row_bytes:
            self._table = self._bytes.view(self._word).reshape(-1, self._row_bytes // self._word.itemsize)

    def memory(self, slot: int, count: int) -> memoryview:
        """Where the ``count`` rows of a block go."""
        start = slot * self._rows * self._row_bytes
        return self._bytes.data[start : start + count * self._row_bytes]

    def gather(self, places: Integers, out: Out) -> None:
        """The rows at ``places`` into ``out``."""
        if isinstance(out, list):
            for place, row in zip(places.tolist(), rows_of(out), strict=True):
                np.copyto(row.view(self._word), self._table[place])
        elif self._row_bytes and len(places):
            # "clip" because "raise" would go through a copy; the places are ours. Not torch's index_select: it would
            # start a team of threads for each thread that calls it.
            np.take(self._table, places, axis=0, out=bytes_of(out).view(self._word), mode="clip")
