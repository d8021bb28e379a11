"""One stream of rows in random order, bounded in how far a row moves: the *delayed shuffle*."""

from typing import Any, NamedTuple

import numpy as np

from shardcache.format.permutation import Integers, Permutation, derive, random_words
from shardcache.read.geometry import Flags, Geometry, Pieces

_BLOCK_ORDER, _DELAYS = 3, 4
_TIE_BITS = 20
_TABLED = 1024  # blocks
_NONE = np.empty(0, np.int64)
_WINDOW = 4096  # rows, about: so many that the cost of NumPy's calls is small beside that of the rows


class Rows(NamedTuple):
    """Some rows in the order in which they are delivered; arrays of one length.

    ``visit`` names one stay of a block in the buffer: the same block may be visited by two strands. ``last`` marks the
    last row of a visit. ``valid`` is False for a row that only fills up a batch and was delivered before.
    """

    visit: Integers
    block: Integers
    offset: Integers
    valid: Flags
    last: Flags

    def part(self, part: slice | Integers) -> "Rows":
        """Some of them, in the order that is asked for."""
        return Rows(self.visit[part], self.block[part], self.offset[part], self.valid[part], self.last[part])


def joined(parts: list[Rows]) -> Rows:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    visit, block, offset, valid, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Rows(visit, block, offset, valid, last)


class Strand:
    """The rows of some pieces, shuffled within a bounded distance.

    The blocks are permuted. All rows of the block that begins at ``a`` get the key ``a + U(0, span + block)`` and are
    delivered in the order of their keys. No row moves further than that, and it mixes like a reservoir of half the
    size; but it is a function, so it can be computed in windows and entered anywhere: :meth:`take` gives the next rows,
    and a strand that starts at row k looks at no more than a window of rows before it.
    """

    def __init__(self, geometry: Geometry, pieces: Pieces, span: int, key: int, serial: int, start: int) -> None:
        self._geometry, self._pieces = geometry, pieces
        self._serial, self._key = serial << 40, derive(key, _DELAYS)
        self._ends = np.cumsum(pieces.blocks)
        self._blocks = int(self._ends[-1]) if len(self._ends) else 0
        order = Permutation(self._blocks, derive(key, _BLOCK_ORDER))
        self._order = _Tabled(order) if self._blocks <= _TABLED else order
        self._reach = span + geometry.rows_per_block
        self._starts: _EvenStarts | _UnevenStarts = self._even() if geometry.is_even else self._uneven()
        keys = self._starts.total + self._reach
        self._window = max(self._reach, -(-keys // max(1, round(keys / _WINDOW))))  # all equal: none is a small rest
        self._next = max(0, start - geometry.rows_per_block)  # the key at which the next window starts
        self._taken = start - self._rank(self._next)  # rows of the window that were delivered
        self._ready = self._next_window()

    def _even(self) -> "_EvenStarts":
        """All blocks are of one size but for short ones, and those at the ends of pieces, which may be parts."""
        if self._geometry.rows_per_block == 1:
            return _EvenStarts(1, self._blocks, _NONE, _NONE)
        found = np.concatenate([self._ends - self._pieces.blocks, self._ends - 1, self._short()])
        ordinals = np.array(sorted(set(found.tolist())), np.int64)  # np.unique would load numpy.ma into each worker
        missing = self._geometry.rows_per_block - self._part(ordinals)[1]
        places = self._order.inverse(ordinals[missing > 0])
        by_place = np.argsort(places)
        return _EvenStarts(
            self._geometry.rows_per_block, self._blocks, places[by_place], missing[missing > 0][by_place]
        )

    def _short(self) -> Integers:
        """The ordinals of blocks that are short whichever part of them this strand has."""
        short, first = self._geometry.short_blocks(), self._pieces.block
        if not len(short):
            return short
        low, high = np.searchsorted(short, first), np.searchsorted(short, first + self._pieces.blocks)
        piece = np.repeat(np.arange(len(first)), high - low)
        found = np.arange(len(piece)) - np.repeat(np.cumsum(high - low) - high, high - low)
        ordinals: Integers = (self._ends - self._pieces.blocks)[piece] + short[found] - first[piece]
        return ordinals

    def _uneven(self) -> "_UnevenStarts":
        return _UnevenStarts(self._part(self._order.forward(np.arange(self._blocks)))[1])

    def _part(self, ordinals: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """(first offset, rows, piece, block) of the strand's blocks, numbered as they lie."""
        piece = np.searchsorted(self._ends, ordinals, side="right")
        first = self._pieces.block[piece]
        block = first + ordinals - (self._ends[piece] - self._pieces.blocks[piece])
        start = self._geometry.start(block)
        low = np.where(block == first, self._pieces.skip[piece], 0)
        rows_left = self._geometry.start(first) + self._pieces.skip[piece] + self._pieces.rows[piece] - start
        high = np.minimum(rows_left, self._geometry.start(block + 1) - start)
        return low, high - low, piece, block

    def _keys(self, places: Integers) -> tuple[Any, ...]:
        """For every row of the blocks at ``places``: its key with tie-break, which of them, row in the block's part."""
        part = self._part(self._order.forward(places))
        rows = part[1]
        owner = np.repeat(np.arange(len(places)), rows)
        ends = np.cumsum(rows)
        inside = np.arange(len(owner)) - np.repeat(ends - rows, rows)
        words = random_words(self._key, np.repeat(places * self._geometry.rows_per_block, rows) + inside)
        delay = ((words >> np.uint64(32)) * np.uint64(self._reach)) >> np.uint64(32)
        keys = np.repeat(self._starts.of(places), rows).astype(np.uint64) + delay
        keys = (keys << np.uint64(_TIE_BITS)) | (words & np.uint64((1 << _TIE_BITS) - 1))
        return keys, owner, inside, ends, part

    def _rank(self, key: int) -> int:
        """How many rows have a smaller key."""
        if not key:
            return 0
        places = self._starts.places(key - self._reach - 1, key)  # none only where all begin before
        if not len(places):
            return self._starts.total
        keys, *_ = self._keys(places)
        return int(self._starts.of(places[:1])[0]) + int((keys < np.uint64(key << _TIE_BITS)).sum())

    def _next_window(self) -> Rows:
        low, high = self._next, self._next + self._window
        self._next = high
        places = self._starts.places(low - self._reach, high)
        keys, owner, inside, ends, (first, _, piece, block) = self._keys(places)
        order = np.argsort(keys, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        last = np.zeros(len(order), bool)
        if len(order):
            last[np.maximum.reduceat(rank, np.concatenate([[0], ends[:-1]]))] = True
        begin, end = np.searchsorted(keys[order], np.array([low << _TIE_BITS, high << _TIE_BITS], np.uint64))
        chosen, last = order[begin:end], last[begin:end]
        of = owner[chosen]
        offset = first[of] + inside[chosen]
        return Rows(self._serial + places[of], block[of], offset, self._pieces.valid[piece][of], last)

    def take(self, count: int) -> Rows:
        """The next ``count`` rows."""
        parts = []
        while (left := len(self._ready.block) - self._taken) < count:
            if left > 0:
                parts.append(self._ready.part(slice(self._taken, None)))
                count -= left
            self._taken = max(0, -left)
            self._ready = self._next_window()
        parts.append(self._ready.part(slice(self._taken, self._taken + count)))
        self._taken += count
        return joined(parts)


class _Tabled:
    """A short permutation, written down: to work it out takes some hundred calls of NumPy each time."""

    def __init__(self, order: Permutation) -> None:
        self._forward = order.forward(np.arange(order.length))
        self._inverse = np.empty_like(self._forward)
        self._inverse[self._forward] = np.arange(order.length)

    def forward(self, places: Integers) -> Integers:
        return self._forward[places]

    def inverse(self, ordinals: Integers) -> Integers:
        return self._inverse[ordinals]


class _EvenStarts:
    """How many rows come before the block at a place, where all but a few blocks are of one size."""

    def __init__(self, per_block: int, blocks: int, short: Integers, missing: Integers) -> None:
        self._per_block, self._blocks, self._short = per_block, blocks, short
        self._missing: Integers = np.concatenate([[0], np.cumsum(missing)])
        self._short_starts = short * per_block - self._missing[:-1]
        self.total = blocks * per_block - int(self._missing[-1])

    def of(self, places: Integers) -> Integers:
        missing: Integers = self._missing[np.searchsorted(self._short, places)]
        return places * self._per_block - missing

    def places(self, above: int, below: int) -> Integers:
        """Every place that starts above one number and below another, and perhaps one more."""
        before_first, before_last = self._missing[np.searchsorted(self._short_starts, [above, below], side="right")]
        first = max(0, (above + int(before_first)) // self._per_block + 1)
        last = min(self._blocks, -(-(below + int(before_last)) // self._per_block))
        return np.arange(min(first, last), last)


class _UnevenStarts:
    """The same for blocks of any size: a table."""

    def __init__(self, rows: Integers) -> None:
        ends = np.cumsum(rows)
        self._table, self.total = ends - rows, int(ends[-1]) if len(ends) else 0

    def of(self, places: Integers) -> Integers:
        return self._table[places]

    def places(self, above: int, below: int) -> Integers:
        """Every place that starts above one number and below another."""
        return np.arange(np.searchsorted(self._table, above, "right"), np.searchsorted(self._table, below, "left"))
