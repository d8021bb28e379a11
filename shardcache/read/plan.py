"""Which rows, in which order, for which rank and worker: integers in, integers out.

An epoch is a sequence of **steps**; a step is one batch on each rank. The rows of an epoch form one long sequence, cut
into strands, and each strand gives an equal share of each of its steps:

* ``full``: the sequence is a permutation of all rows; step t takes the t-th piece of it. For epochs that fit in memory.
* ``lanes``: the sequence is the extents (runs of blocks) in a random order. It is cut into L lanes at whole steps, each
  lane into a strand a canonical rank. In a strand the blocks are permuted and the rows delayed at random
  (:class:`Strand`), which mixes them as a shuffle buffer does, but can be computed from any point on. Step t is the next
  one of lane ``t mod L``.
* ``source``, ``stored``: the sequence is the rows in the order of the source, or as they lie on disk.

Nothing here reads a file, a clock or a global random generator, and nothing is as large as the epoch. The output for a
few seeds is frozen in a test: it decides what everybody's models are trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from shardcache.format.permutation import Integers as Integers
from shardcache.format.permutation import Permutation, derive, random_words

LANES = 48
_EXTENTS = 2048
_SEQUENCE, _EXTENT_ORDER, _BLOCK_ORDER, _DELAYS = range(1, 5)
_TIE_BITS = 20

Flags = np.ndarray[Any, np.dtype[np.bool_]]


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

    def part(self, part: slice) -> "Rows":
        """Some consecutive ones of them."""
        return Rows(self.visit[part], self.block[part], self.offset[part], self.valid[part], self.last[part])


def joined(parts: list[Rows]) -> Rows:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    visit, block, offset, valid, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Rows(visit, block, offset, valid, last)


@dataclass(frozen=True)
class Geometry:
    """How many rows there are and how they lie in blocks and shards."""

    rows: int
    rows_per_block: int
    blocks_per_shard: int

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.rows_per_block)


@dataclass(frozen=True)
class Order:
    """What an epoch is a function of.

    ``kind`` is ``full``, ``lanes``, ``source`` or ``stored``. ``share`` is the number of rows that a strand gives to a
    step, ``strands`` how many canonical ranks there are: a global batch has ``share * strands`` rows. ``span`` is how
    many rows, beyond its block's own, a row of a strand may be delayed. ``remainder`` says what becomes of the rows that
    do not fill a batch: ``drop``, ``pad`` or ``keep``.
    """

    kind: str
    seed: int
    epoch: int
    share: int
    strands: int = 1
    span: int = 0
    remainder: str = "keep"


class Plan:
    """An epoch."""

    def __init__(self, geometry: Geometry, order: Order, layout: Permutation | None = None) -> None:
        self.geometry, self.order = geometry, order
        self._layout = layout
        self._key = derive(order.seed, order.epoch)
        self.global_batch = order.share * order.strands
        whole, self._rest = divmod(geometry.rows, self.global_batch)
        self.steps = whole + (1 if self._rest and order.remainder != "drop" else 0)
        self.lanes = max(1, min(LANES, self.steps))

    def rank_steps(self, rank: int, world_size: int) -> int:
        """How many batches a rank gets: all the same, unless the remainder is kept and some ranks have none of it."""
        if not self._is_short(self.steps - 1):
            return self.steps
        owned = self._owned(rank, world_size)
        return self.steps - (0 if any(self._share(self.steps - 1, strand) for strand in owned) else 1)

    def worker_steps(self, worker: int, workers: int, start: int = 0, yielded: int = 0) -> Iterator[int]:
        """The steps from ``start`` on that a worker delivers, in order.

        A DataLoader asks its workers in turn, worker 0 first; ``yielded`` batches were delivered by this iterator before
        the epoch began. A worker owns whole lanes, so that no other worker decodes its blocks.
        """
        for step in range(start, self.steps):
            place = step % self.lanes if self.order.kind == "lanes" else step
            if (place - start + yielded) % workers == worker:
                yield step

    def _owned(self, rank: int, world_size: int) -> range:
        each = self.order.strands // world_size
        return range(rank * each, (rank + 1) * each)

    def _is_short(self, step: int) -> bool:
        return self.order.remainder == "keep" and self._rest > 0 and step == self.steps - 1

    def _share(self, step: int, strand: int) -> int:
        """How many rows a strand gives to a step."""
        if not self._is_short(step):
            return self.order.share
        return self._rest * (strand + 1) // self.order.strands - self._rest * strand // self.order.strands

    def reader(self, rank: int, world_size: int) -> "PlanReader":
        """Gives the rows of one step after another, to one worker of one rank."""
        return PlanReader(self, self._owned(rank, world_size))

    def sequence_rows(self, step: int, strand: int) -> Rows:
        """The rows of a step where the sequence is known in closed form: every kind but ``lanes``."""
        share = self._share(step, strand)
        if self._is_short(step):
            start = step * self.global_batch + self._rest * strand // self.order.strands
        else:
            start = step * self.global_batch + strand * share
        place = np.arange(start, start + share)
        rows = place % self.geometry.rows
        if self.order.kind == "full":
            rows = self._full.forward(rows)
        elif self.order.kind == "source" and self._layout is not None:
            rows = self._layout.inverse(rows)
        block, offset = np.divmod(rows, self.geometry.rows_per_block)
        return Rows(block, block, offset, place < self.geometry.rows, np.zeros(share, bool))

    @cached_property
    def _full(self) -> Permutation:
        return Permutation(self.geometry.rows, derive(self._key, _SEQUENCE))

    def strand(self, lane: int, number: int, start: int) -> "Strand":
        """Strand ``number`` of a lane, from its ``start``-th row on."""
        first, count = self._strand_range(lane, number)
        pieces = self.extents.pieces(first, count)
        serial = lane * self.order.strands + number
        return Strand(self.geometry.rows_per_block, pieces, self.order.span, derive(self._key, serial), serial, start)

    def _strand_range(self, lane: int, number: int) -> tuple[int, int]:
        """Where a strand lies in the sequence: (start, length)."""
        each, longer = divmod(self.steps, self.lanes)
        steps_before, steps = lane * each + min(lane, longer), each + (lane < longer)
        start, count = steps_before * self.global_batch + number * steps * self.order.share, steps * self.order.share
        if not self._is_short(self.steps - 1):
            return start, count
        short_lane, missing = (self.steps - 1) % self.lanes, self.global_batch - self._rest
        if lane > short_lane:
            return start - missing, count
        if lane < short_lane:
            return start, count
        shares = [self._share(self.steps - 1, strand) for strand in range(self.order.strands)]
        start = steps_before * self.global_batch + number * (steps - 1) * self.order.share + sum(shares[:number])
        return start, (steps - 1) * self.order.share + shares[number]

    @cached_property
    def extents(self) -> "Extents":
        return Extents(self.geometry, derive(self._key, _EXTENT_ORDER))


class Pieces(NamedTuple):
    """Runs of rows in consecutive blocks: the first block of each, rows of it to skip, how many rows, whether valid."""

    block: Integers
    skip: Integers
    rows: Integers
    valid: Flags


class Extents:
    """All blocks, in runs that lie in one shard, in the random order of an epoch."""

    def __init__(self, geometry: Geometry, key: int) -> None:
        blocks, per_shard = geometry.blocks, geometry.blocks_per_shard
        length = max(1, min(per_shard, blocks // _EXTENTS))
        inside = np.arange(0, per_shard, length)
        firsts = (np.arange(0, blocks, per_shard)[:, None] + inside).reshape(-1)
        ends = np.minimum(firsts + np.minimum(length, per_shard - np.tile(inside, len(firsts) // len(inside))), blocks)
        firsts, ends = firsts[firsts < blocks], ends[firsts < blocks]
        order = Permutation(len(firsts), key).forward(np.arange(len(firsts)))
        self._rows, self._per_block = geometry.rows, geometry.rows_per_block
        self._first = firsts[order]
        rows = np.minimum(ends * self._per_block, self._rows) - firsts * self._per_block
        self._end = np.cumsum(rows[order])
        self._start = self._end - rows[order]

    def pieces(self, start: int, count: int) -> Pieces:
        """The part [start, start + count) of the sequence; beyond its end it begins again, with rows that are not valid."""
        parts = []
        while count > 0:
            lap, low = divmod(start, self._rows)
            high = min(low + count, self._rows)
            first, last = np.searchsorted(self._end, [low, high - 1], side="right")
            inside = slice(first, last + 1)
            begin = np.maximum(self._start[inside], low)
            rows = np.minimum(self._end[inside], high) - begin
            into = begin - self._start[inside]
            block = self._first[inside] + into // self._per_block
            parts.append(Pieces(block, into % self._per_block, rows, np.full(len(rows), lap == 0)))
            start, count = start + high - low, count - (high - low)
        if not parts:
            empty = np.empty(0, np.int64)
            return Pieces(empty, empty, empty, np.empty(0, bool))
        return Pieces(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Strand:
    """The rows of some pieces, shuffled within a bounded distance: the *delayed shuffle*.

    The blocks are permuted. All rows of the block that comes at place ``a`` get the key ``a + U(0, span + rows_per_block)``
    and rows are delivered in the order of their keys. No row moves further than that, and it mixes like a reservoir of half
    the size; but it is a function, so it can be computed in windows and entered anywhere: :meth:`take` gives the next rows,
    and a strand that starts at row k looks at no more than a window of rows before it.
    """

    def __init__(self, per_block: int, pieces: Pieces, span: int, key: int, serial: int, start: int) -> None:
        self._per_block, self._pieces = per_block, pieces
        self._serial, self._key = serial << 40, derive(key, _DELAYS)
        self._counts = (pieces.skip + pieces.rows + per_block - 1) // per_block  # blocks of each piece
        self._ends = np.cumsum(self._counts)
        self._blocks = int(self._ends[-1]) if len(self._ends) else 0
        self._order = Permutation(self._blocks, derive(key, _BLOCK_ORDER))
        self._reach = span + per_block
        self._find_short_blocks()
        self._window = max(2 * self._reach, 2048)
        self._next = max(0, start - per_block)  # the key at which the next window starts
        self._ready: list[Rows] = []
        self._skip = start - self._rank(self._next)

    def _find_short_blocks(self) -> None:
        """The few blocks of which this strand has only a part, by their place in its order."""
        first, last = self._ends - self._counts, self._ends - 1
        ordinals = np.unique(np.concatenate([first, last]))
        _, rows, _ = self._part(ordinals)
        short = rows < self._per_block
        places = self._order.inverse(ordinals[short])
        by_place = np.argsort(places)
        self._short = places[by_place]
        missing = (self._per_block - rows[short])[by_place]
        self._missing = np.concatenate([[0], np.cumsum(missing)])

    def _part(self, ordinals: Integers) -> tuple[Integers, Integers, Integers]:
        """(first offset, rows, piece) of the strand's blocks, numbered as they lie."""
        piece = np.searchsorted(self._ends, ordinals, side="right")
        inside = ordinals - (self._ends[piece] - self._counts[piece])
        skip, total = self._pieces.skip[piece], self._pieces.skip[piece] + self._pieces.rows[piece]
        low = np.where(inside == 0, skip, 0)
        high = np.minimum(total - inside * self._per_block, self._per_block)
        return low, high - low, piece

    def _starts(self, places: Integers) -> Integers:
        """How many rows come in the blocks before those at ``places``."""
        missing: Integers = self._missing[np.searchsorted(self._short, places)]
        return places * self._per_block - missing

    def _places(self, low: int, high: int) -> Integers:
        """Every place whose rows may have a key in [low, high), and a few more; those before it have smaller keys."""
        first = max(0, (low - self._reach) // self._per_block + 1)
        last = min(self._blocks, -(-(high + int(self._missing[-1])) // self._per_block))
        return np.arange(min(first, last), last)

    def _keys(self, places: Integers) -> tuple[Any, ...]:
        """For every row of the blocks at ``places``: (key with tie-break, place as an ordinal of ``places``, row in part)."""
        ordinals = self._order.forward(places)
        low, rows, piece = self._part(ordinals)
        owner = np.repeat(np.arange(len(places)), rows)
        ends = np.cumsum(rows)
        inside = np.arange(len(owner)) - np.repeat(ends - rows, rows)
        words = random_words(self._key, np.repeat(places * self._per_block, rows) + inside)
        delay = ((words >> np.uint64(32)) * np.uint64(self._reach)) >> np.uint64(32)
        keys = np.repeat(self._starts(places), rows).astype(np.uint64) + delay
        keys = (keys << np.uint64(_TIE_BITS)) | (words & np.uint64((1 << _TIE_BITS) - 1))
        return keys, owner, inside, (ordinals, low, rows, piece, ends)

    def _rank(self, key: int) -> int:
        """How many rows have a smaller key."""
        places = self._places(key, key)
        if not len(places):
            return int(self._starts(np.array([self._blocks]))[0]) if self._blocks and key else 0
        keys, *_ = self._keys(places)
        return int(self._starts(places[:1])[0]) + int((keys < np.uint64(key << _TIE_BITS)).sum())

    def _next_window(self) -> Rows:
        low, high = self._next, self._next + self._window
        self._next = high
        places = self._places(low, high)
        keys, owner, inside, (ordinals, first, _, piece, ends) = self._keys(places)
        order = np.argsort(keys, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        starts = np.concatenate([[0], ends[:-1]])
        last = np.zeros(len(order), bool)
        if len(order):
            last[np.maximum.reduceat(rank, starts)] = True
        begin, end = np.searchsorted(keys[order], np.array([low << _TIE_BITS, high << _TIE_BITS], np.uint64))
        chosen, last = order[begin:end], last[begin:end]
        of = owner[chosen]
        block = self._pieces.block[piece] + ordinals - (self._ends[piece] - self._counts[piece])
        return Rows(
            self._serial + places[of], block[of], (first[of] + inside[chosen]), self._pieces.valid[piece][of], last
        )

    def take(self, count: int) -> Rows:
        """The next ``count`` rows."""
        have = sum(len(rows.block) for rows in self._ready)
        while not self._ready or have < count + self._skip:
            window = self._next_window()
            self._ready.append(window)
            have += len(window.block)
        rows = joined(self._ready).part(slice(self._skip, None))
        self._skip, self._ready = 0, [rows.part(slice(count, None))]
        return rows.part(slice(count))


class PlanReader:
    """The rows of step after step for one worker; ``rows(steps)`` must be asked for ascending steps."""

    def __init__(self, plan: Plan, strands: range) -> None:
        self._plan, self._numbers = plan, strands
        self._strands: dict[tuple[int, int], Strand] = {}

    def rows(self, steps: list[int]) -> Rows:
        """The rows of some steps of this worker, one step after the other."""
        if self._plan.order.kind != "lanes":
            return joined([self._plan.sequence_rows(step, n) for step in steps for n in self._numbers])
        return joined([self._take(step, number) for step in steps for number in self._numbers])

    def _take(self, step: int, number: int) -> Rows:
        ordinal, lane = divmod(step, self._plan.lanes)
        strand = self._strands.get((lane, number))
        if strand is None:
            strand = self._strands[lane, number] = self._plan.strand(lane, number, ordinal * self._plan.order.share)
        return strand.take(self._plan._share(step, number))
