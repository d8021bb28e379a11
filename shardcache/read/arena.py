"""The bounded shuffle buffer: decoded blocks in slots, from which batches are gathered.

A slot holds one block. Its fixed columns lie in one preallocated array a column, so that a batch is one gather a
column; its other columns are kept decoded beside it. A slot is used again when the last row of its block has been
delivered, the lowest free one first: memory that is never needed is never touched, and so is never resident.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from shardcache.format.columns import BlockRows, fixed_row_bytes
from shardcache.format.permutation import Integers
from shardcache.format.schema import ABSENT
from shardcache.read.blocks import Blocks
from shardcache.read.fields import TENSOR, Field
from shardcache.read.strand import Rows

_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


class Arena:
    """Slots for ``slots`` blocks of the given fields.

    With ``keep`` a block stays until its slot is needed (the one that was used longest ago goes first); without, until
    its last row is taken.
    """

    def __init__(self, blocks: Blocks, fields: Sequence[Field], slots: int, *, keep: bool) -> None:
        self._blocks, self._keep = blocks, keep
        self._rows_per_block = blocks.manifest.rows_per_block
        self._fixed = {field.position: _Fixed(blocks, field, slots) for field in fields if field.batch == TENSOR}
        self._others = sorted({at for field in fields if field.batch != TENSOR for at in field.positions})
        self._slots = slots
        self._free = list(range(slots))
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # visit -> slot, the oldest first
        self._columns: list[dict[int, BlockRows]] = [{}] * slots

    def runs(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """``rows`` in runs whose blocks fit into the arena together; in most cases, one."""
        if not self._keep or len(np.unique(rows.visit)) <= self._slots:
            yield slice(0, len(rows.visit)), rows
            return
        for start in range(0, len(rows.visit), self._slots):
            part = slice(start, start + self._slots)
            yield part, rows.part(part)

    def load(self, rows: Rows) -> Integers:
        """See that the blocks of ``rows`` are here; returns the place of each row (slot * rows a block + offset)."""
        visits, first, inverse = np.unique(rows.visit, return_index=True, return_inverse=True)
        blocks = rows.block[first].tolist()
        slots = [self._slot(visit, block) for visit, block in zip(visits.tolist(), blocks, strict=True)]
        return np.array(slots, np.int64)[inverse] * self._rows_per_block + rows.offset

    def release(self, rows: Rows) -> None:
        """Free the slots whose last row is among ``rows``."""
        if not self._keep:
            for visit in rows.visit[rows.last].tolist():
                slot = self._slot_of.pop(visit)
                self._columns[slot] = {}
                heapq.heappush(self._free, slot)

    def _slot(self, visit: int, block: int) -> int:
        slot = self._slot_of.get(visit)
        if slot is not None:
            if self._keep:
                self._slot_of.move_to_end(visit)
            return slot
        if self._free:
            slot = heapq.heappop(self._free)
        elif self._keep:
            _, slot = self._slot_of.popitem(last=False)
        else:
            slot = self._grow()
        count = self._blocks.manifest.block_rows(block)
        into = {position: fixed.memory(slot, count) for position, fixed in self._fixed.items()}
        self._columns[slot] = self._blocks.read(block, self._others, into)
        self._slot_of[visit] = slot
        return slot

    def _grow(self) -> int:
        """More blocks at once than the plan's bound says (many short ones): a few slots more, rather than no batch."""
        slot, more = self._slots, max(4, self._slots // 4)
        for fixed in self._fixed.values():
            fixed.grow(self._slots + more)
        self._columns += [{}] * more
        self._free = list(range(slot + 1, slot + more))
        self._slots += more
        return slot

    def gather(self, field: Field, places: Integers, out: torch.Tensor) -> None:
        """The rows of a fixed field at ``places`` into ``out``."""
        self._fixed[field.position].gather(torch.from_numpy(places), out)

    def values(self, position: int, places: Integers, rows: Rows) -> list[Any]:
        """The values of a column at ``places``, where ``rows`` lie; ABSENT where there is none."""
        slots, offsets = np.divmod(places, self._rows_per_block)
        values = []
        for slot, offset in zip(slots.tolist(), offsets.tolist(), strict=True):
            column = self._columns[slot].get(position)
            try:
                values.append(ABSENT if column is None else column.value(offset))
            except ValueError as error:
                raise self._blocks.value_error(int(rows.block[len(values)]), position, offset, error) from None
        return values


class _Fixed:
    """The rows of one fixed column, in one array of machine words that any dtype can be gathered through."""

    def __init__(self, blocks: Blocks, field: Field, slots: int) -> None:
        self._row_bytes = fixed_row_bytes(blocks.manifest.columns[field.position])
        self._rows = blocks.manifest.rows_per_block
        self._word_bytes, self._word = next(word for word in _WORDS if self._row_bytes % word[0] == 0)
        self._bytes = np.empty(0, np.uint8)
        self.grow(slots)

    def grow(self, slots: int) -> None:
        old, self._bytes = self._bytes, np.empty(slots * self._rows * self._row_bytes, np.uint8)
        self._bytes[: len(old)] = old
        if self._row_bytes:
            words = self._row_bytes // self._word_bytes
            self._table = torch.from_numpy(self._bytes).view(self._word).view(-1, words)

    def memory(self, slot: int, count: int) -> memoryview:
        """Where the ``count`` rows of a block go."""
        start = slot * self._rows * self._row_bytes
        return self._bytes.data[start : start + count * self._row_bytes]

    def gather(self, places: torch.Tensor, out: torch.Tensor) -> None:
        if not self._row_bytes or not len(places):
            return
        flat = out.view(-1) if out.dim() != 1 else out
        words = (flat if flat.dtype == self._word else flat.view(self._word)).view(len(places), -1)
        torch.index_select(self._table, 0, places, out=words)
