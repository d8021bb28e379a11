"""How rows lie in blocks, and the random order of an epoch's blocks as one long sequence of rows."""

from typing import Any, NamedTuple

import numpy as np

from shardcache.format.permutation import Integers, Permutation

Flags = np.ndarray[Any, np.dtype[np.bool_]]

_EXTENTS = 2048
_NONE = np.empty(0, np.int64)


class Geometry:
    """Rows 0, 1, ... in blocks of one size: where a row lies is arithmetic."""

    def __init__(self, rows: int, rows_per_block: int, blocks_per_shard: int) -> None:
        self.rows, self.rows_per_block, self.blocks_per_shard = rows, rows_per_block, blocks_per_shard
        self.blocks = -(-rows // rows_per_block)
        self.is_even = True

    @property
    def block_rows(self) -> float:
        """Rows of a block that are wanted: of most blocks, or on average where they differ."""
        return self.rows_per_block

    def short_blocks(self) -> Integers:
        """The blocks, ascending, of which fewer rows are wanted than of others, but for the last one of all."""
        return _NONE

    def start(self, block: Integers) -> Integers:
        """The first row of a block."""
        return np.minimum(block * self.rows_per_block, self.rows)

    def locate(self, row: Integers) -> tuple[Integers, Integers]:
        """(block, offset) of a row."""
        block, offset = np.divmod(row, self.rows_per_block)
        return block, offset

    def stored(self, block: Integers, offset: Integers) -> tuple[Integers, Integers]:
        """(block, offset) on disk."""
        return block, offset

    def extents(self) -> tuple[Integers, Integers]:
        """All blocks in runs that lie in one shard: (first block, end) of each."""
        return _extents(self.blocks, self.blocks_per_shard)


def _extents(blocks: int, blocks_per_shard: int) -> tuple[Integers, Integers]:
    length = max(1, min(blocks_per_shard, blocks // _EXTENTS))
    inside = np.arange(0, blocks_per_shard, length)
    shards = np.arange(0, blocks, blocks_per_shard)
    firsts = (shards[:, None] + inside).reshape(-1)
    ends = (shards[:, None] + np.minimum(inside + length, blocks_per_shard)).reshape(-1)
    there = firsts < blocks
    return firsts[there], np.minimum(ends[there], blocks)


class Gaps(Geometry):
    """The rows of a cache but for some that hold no sample: a short list, beside which all is arithmetic.

    ``skipped`` are those rows, ascending; ``rows``, as for a :class:`Geometry`, counts them too. Blocks of skipped rows
    alone are left out.
    """

    def __init__(self, skipped: Integers, rows: int, rows_per_block: int, blocks_per_shard: int) -> None:
        super().__init__(rows, rows_per_block, blocks_per_shard)
        self._stored_blocks, self._skipped = self.blocks, skipped
        self._kept_before = skipped - np.arange(len(skipped))  # how many rows are kept before each skipped one
        blocks, counts = np.unique(skipped // rows_per_block, return_counts=True)
        is_empty = counts == np.minimum(rows_per_block, rows - blocks * rows_per_block)
        self._empty = blocks[is_empty]
        self._blocks_before = self._empty - np.arange(len(self._empty))
        self._short = self._without_empty(blocks[~is_empty])
        self.rows, self.blocks = rows - len(skipped), self.blocks - len(self._empty)

    @property
    def block_rows(self) -> float:
        return self.rows / self.blocks

    def short_blocks(self) -> Integers:
        return self._short

    def _without_empty(self, stored: Integers) -> Integers:
        """Numbers of blocks in the cache -> here."""
        return stored - np.searchsorted(self._empty, stored)

    def _with_empty(self, block: Integers) -> Integers:
        stored: Integers = block + np.searchsorted(self._blocks_before, block, side="right")
        return stored

    def start(self, block: Integers) -> Integers:
        first = self._with_empty(block) * self.rows_per_block
        rows: Integers = np.minimum(first - np.searchsorted(self._skipped, first), self.rows)
        return rows

    def _stored_row(self, row: Integers) -> Integers:
        return row + np.searchsorted(self._kept_before, row, side="right")

    def locate(self, row: Integers) -> tuple[Integers, Integers]:
        block = self._without_empty(self._stored_row(row) // self.rows_per_block)
        return block, row - self.start(block)

    def stored(self, block: Integers, offset: Integers) -> tuple[Integers, Integers]:
        there, inside = np.divmod(self._stored_row(self.start(block) + offset), self.rows_per_block)
        return there, inside

    def extents(self) -> tuple[Integers, Integers]:
        firsts, ends = map(self._without_empty, _extents(self._stored_blocks, self.blocks_per_shard))
        return firsts[firsts < ends], ends[firsts < ends]


class Selection(Geometry):
    """Some rows of a cache, as rows 0, 1, ... of a view; blocks that hold none of them are left out.

    ``stored_rows`` are the rows in the cache, ascending.
    """

    def __init__(self, stored_rows: Integers, rows_per_block: int) -> None:
        self.rows, self.rows_per_block, self.blocks_per_shard = len(stored_rows), rows_per_block, 1
        self.is_even = False
        self._stored_rows = stored_rows
        blocks = stored_rows // rows_per_block
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        self._starts = np.append(starts, len(stored_rows))
        self.blocks = len(starts)

    @property
    def block_rows(self) -> float:
        return self.rows / self.blocks

    def start(self, block: Integers) -> Integers:
        return self._starts[block]

    def locate(self, row: Integers) -> tuple[Integers, Integers]:
        block = np.searchsorted(self._starts, row, side="right") - 1
        return block, row - self._starts[block]

    def stored(self, block: Integers, offset: Integers) -> tuple[Integers, Integers]:
        there, inside = np.divmod(self._stored_rows[self._starts[block] + offset], self.rows_per_block)
        return there, inside

    def extents(self) -> tuple[Integers, Integers]:
        firsts = np.arange(0, self.blocks, max(1, self.blocks // _EXTENTS))
        return firsts, np.append(firsts[1:], self.blocks)


class Pieces(NamedTuple):
    """Runs of rows in consecutive blocks: the first block, rows of it to skip, rows, blocks touched, whether valid."""

    block: Integers
    skip: Integers
    rows: Integers
    blocks: Integers
    valid: Flags


class Sequence:
    """All rows of a geometry, extent by extent, the extents in the order that belongs to ``key``."""

    def __init__(self, geometry: Geometry, key: int) -> None:
        self._geometry = geometry
        firsts, ends = geometry.extents()
        order = Permutation(len(firsts), key).forward(np.arange(len(firsts)))
        self._first_row = geometry.start(firsts)[order]
        rows = geometry.start(ends)[order] - self._first_row
        self._end = np.cumsum(rows)
        self._start = self._end - rows

    def pieces(self, start: int, count: int) -> Pieces:
        """The part [start, start + count); beyond its end the sequence begins again, with rows that are not valid."""
        rows, lengths, valid = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, bool)]
        while count > 0:
            lap, low = divmod(start, self._geometry.rows)
            high = min(low + count, self._geometry.rows)
            first, last = np.searchsorted(self._end, [low, high - 1], side="right")
            inside = slice(first, last + 1)
            begin = np.maximum(self._start[inside], low)
            lengths.append(np.minimum(self._end[inside], high) - begin)
            rows.append(self._first_row[inside] + begin - self._start[inside])
            valid.append(np.full(len(begin), lap == 0))
            start, count = start + high - low, count - (high - low)
        begins, sizes = np.concatenate(rows), np.concatenate(lengths)
        block, skip = self._geometry.locate(begins)
        last_block, _ = self._geometry.locate(begins + sizes - 1)
        return Pieces(block, skip, sizes, last_block - block + 1, np.concatenate(valid))
