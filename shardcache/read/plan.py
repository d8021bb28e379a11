"""Which rows, in which order, for which rank and worker: integers in, integers out.

An epoch is a sequence of **steps**; a step is one batch on each rank. The rows of an epoch form one long sequence, cut
into strands, and each strand gives an equal share of each of its steps:

* ``full``: the sequence is a permutation of all rows; step t takes the t-th piece of it. For epochs that fit in memory.
* ``lanes``: the sequence is the extents (runs of blocks) in a random order. It is cut into L lanes at whole steps, each
  lane into a strand a canonical rank. In a strand the blocks are permuted and the rows delayed at random
  (:class:`Strand`), which mixes them as a shuffle buffer does, but can be computed from any point on. Step t is the
  next one of lane ``t mod L``.
* ``source``, ``stored``: the sequence is the rows in the order of the source, or as they lie on disk.

Nothing here reads a file, a clock or a global random generator, and nothing is as large as the epoch. The output for a
few seeds is frozen in a test: it decides what everybody's models are trained on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardcache.format.permutation import Integers, Permutation, derive
from shardcache.read.geometry import Geometry, Sequence
from shardcache.read.strand import Rows, Strand, joined

LANES = 48
_SEQUENCE, _EXTENT_ORDER = 1, 2


@dataclass(frozen=True)
class Order:
    """What an epoch is a function of.

    ``kind`` is ``full``, ``lanes``, ``source`` or ``stored``. ``share`` is the number of rows that a strand gives to a
    step, ``strands`` how many canonical ranks there are: a global batch has ``share * strands`` rows. ``span`` is how
    many rows, beyond its block's own, a row of a strand may be delayed. ``remainder`` says what becomes of the rows
    that do not fill a batch: ``drop``, ``pad`` or ``keep``.
    """

    kind: str
    seed: int
    epoch: int
    share: int
    strands: int = 1
    span: int = 0
    remainder: str = "keep"


class Plan:
    """An epoch of the rows of ``geometry``.

    ``from_source`` gives the rows in the cache at which samples lie, for ``source`` order; default: row i.
    """

    def __init__(
        self, geometry: Geometry, order: Order, from_source: Callable[[Integers], Integers] | None = None
    ) -> None:
        self.geometry, self.order = geometry, order
        self._from_source = from_source
        self._key = derive(0, order.seed, order.epoch)  # derive(seed, epoch) would be the same for (0, 1) and (1, 0)
        self.global_batch = order.share * order.strands
        whole, self._rest = divmod(geometry.rows, self.global_batch)
        self.steps = whole + (1 if self._rest and order.remainder != "drop" else 0)
        self.lanes = max(1, min(LANES, self.steps))

    def rank_steps(self, rank: int, world_size: int) -> int:
        """How many batches a rank gets: all the same, unless the remainder is kept and some ranks have none of it."""
        if not self._is_short(self.steps - 1):
            return self.steps
        owned = self._owned(rank, world_size)
        return self.steps - (0 if any(self.share(self.steps - 1, strand) for strand in owned) else 1)

    def worker_steps(self, worker: int, workers: int, start: int = 0, yielded: int = 0) -> Iterator[int]:
        """The steps from ``start`` on that a worker delivers, in order.

        A DataLoader asks its workers in turn, worker 0 first; ``yielded`` batches were delivered by this iterator
        before the epoch began. A worker owns whole lanes, so that no other worker decodes its blocks.
        """
        steps = range(start, self.steps)
        if workers == 1:
            return iter(steps)
        lanes = self.lanes if self.order.kind == "lanes" else self.steps
        return (step for step in steps if (step % lanes - start + yielded) % workers == worker)

    def thread_of(self, step: int, workers: int, threads: int) -> int:
        """Which thread of a worker decodes a step: lanes are dealt out whole, other orders in runs of some blocks."""
        if self.order.kind == "full":
            return 0  # every block is decoded once for the whole epoch
        if self.order.kind == "lanes":
            return step % self.lanes // workers % threads
        return step // (workers * self.run_steps) % threads

    @property
    def run_steps(self) -> int:
        """How many consecutive steps one thread decodes, where that is no matter of lanes: some blocks' worth."""
        if self.order.kind in ("full", "lanes"):
            return 1
        return max(1, 2 * self.geometry.rows_per_block // self.global_batch)

    def _owned(self, rank: int, world_size: int) -> range:
        each = self.order.strands // world_size
        return range(rank * each, (rank + 1) * each)

    def _is_short(self, step: int) -> bool:
        return self.order.remainder == "keep" and self._rest > 0 and step == self.steps - 1

    def share(self, step: int, strand: int) -> int:
        """How many rows a strand gives to a step."""
        if not self._is_short(step):
            return self.order.share
        return self._rest * (strand + 1) // self.order.strands - self._rest * strand // self.order.strands

    def shares(self, steps: Integers, strand: int) -> Integers:
        """The same for some steps, ascending."""
        shares = np.full(len(steps), self.order.share)
        shares[-1] = self.share(int(steps[-1]), strand)  # only the last step of all may be short
        return shares

    def reader(self, rank: int, world_size: int) -> "PlanReader":
        """Gives the rows of one step after another, to one worker of one rank."""
        return PlanReader(self, self._owned(rank, world_size))

    def sequence_rows(self, steps: list[int], strands: range) -> Rows:
        """The rows of some steps where the sequence is known in closed form: every kind but ``lanes``."""
        ranges = [self._sequence_range(step, strand) for step in steps for strand in strands]
        place = np.concatenate([np.arange(start, start + count) for start, count in ranges])
        rows = place % self.geometry.rows
        if self.order.kind == "full":
            rows = self._full.forward(rows)
        if self.order.kind == "source" and self._from_source is not None:
            block, offset = np.divmod(self._from_source(rows), self.geometry.rows_per_block)
        else:
            block, offset = self.geometry.stored(*self.geometry.locate(rows))
        return Rows(block, block, offset, place < self.geometry.rows, np.zeros(len(place), bool))

    def _sequence_range(self, step: int, strand: int) -> tuple[int, int]:
        """(start, length) of what a strand gives to a step."""
        share = self.share(step, strand)
        before = self._rest * strand // self.order.strands if self._is_short(step) else strand * share
        return step * self.global_batch + before, share

    @cached_property
    def _full(self) -> Permutation:
        return Permutation(self.geometry.rows, derive(self._key, _SEQUENCE))

    def strand(self, lane: int, number: int, start: int) -> "Strand":
        """Strand ``number`` of a lane, from its ``start``-th row on."""
        first, count = self._strand_range(lane, number)
        pieces = self._sequence.pieces(first, count)
        serial = lane * self.order.strands + number
        return Strand(self.geometry, pieces, self.order.span, derive(self._key, serial), serial, start)

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
        shares = [self.share(self.steps - 1, strand) for strand in range(self.order.strands)]
        start = steps_before * self.global_batch + number * (steps - 1) * self.order.share + sum(shares[:number])
        return start, (steps - 1) * self.order.share + shares[number]

    @cached_property
    def _sequence(self) -> Sequence:
        return Sequence(self.geometry, derive(self._key, _EXTENT_ORDER))

    def is_same_for(self, workers: int) -> bool:
        """Whether this number of workers delivers the steps in the order of a single one."""
        return self.order.kind != "lanes" or self.steps <= self.lanes or self.lanes % workers == 0


class PlanReader:
    """The rows of step after step for one worker; ``rows(steps)`` must be asked for ascending steps."""

    def __init__(self, plan: Plan, strands: range) -> None:
        self._plan, self._numbers = plan, strands
        self._strands: dict[tuple[int, int], Strand] = {}

    def rows(self, steps: list[int]) -> Rows:
        """The rows of some steps of this worker, one step after the other."""
        if self._plan.order.kind != "lanes":
            return self._plan.sequence_rows(steps, self._numbers)
        rows = self._of_many(np.array(steps)) if len(steps) > 1 else self._of_one(steps[0])
        return Rows(rows.visit, *self._plan.geometry.stored(rows.block, rows.offset), rows.valid, rows.last)

    def ends(self, steps: list[int]) -> list[int]:
        """Where each of some steps begins among their rows, and where the last one ends."""
        rows = sum(self._plan.shares(np.array(steps), number) for number in self._numbers)
        return [0, *np.cumsum(rows).tolist()]

    def _of_one(self, step: int) -> Rows:
        return joined([self._strand(step, number).take(self._plan.share(step, number)) for number in self._numbers])

    def _of_many(self, steps: Integers) -> Rows:
        taken, order = [], []
        for of_lane in self._by_lane(steps):
            for number in self._numbers if len(of_lane) else ():
                shares = self._plan.shares(of_lane, number)
                taken.append(self._strand(int(of_lane[0]), number).take(int(shares.sum())))
                order.append(np.repeat(of_lane, shares))
        return joined(taken).part(np.argsort(np.concatenate(order), kind="stable"))

    def _by_lane(self, steps: Integers) -> list[Integers]:
        lanes = steps % self._plan.lanes
        return np.split(steps[np.argsort(lanes, kind="stable")], np.cumsum(np.bincount(lanes))[:-1])

    def _strand(self, step: int, number: int) -> Strand:
        """The strand that a step takes rows from, at the rows of that step."""
        ordinal, lane = divmod(step, self._plan.lanes)
        strand = self._strands.get((lane, number))
        if strand is None:
            strand = self._strands[lane, number] = self._plan.strand(lane, number, ordinal * self._plan.order.share)
        return strand
