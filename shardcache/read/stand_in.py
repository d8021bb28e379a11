"""``on_corrupt="skip"``: rows that stand in for rows that cannot be read.

Every rank must come to the same number of steps, and a batch must have the shape that the plan says: a rank that had a
batch less than the others would leave them waiting for ever. So a row that is lost is replaced, by another row of its
batch; where that has none, by the first row of the cache or view that can be read. Both are functions of the plan and
of what is damaged alone, so the batches stay the same for every number of workers.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch

from shardcache.errors import DamagedError
from shardcache.format.permutation import Integers
from shardcache.format.schema import ABSENT
from shardcache.read.arena import Out, Values, buffer_for, rows_of
from shardcache.read.blocks import Blocks
from shardcache.read.fields import Field
from shardcache.read.geometry import Geometry
from shardcache.read.strand import Rows
from shardcache.read.watch import Watch


class StandIns:
    """Fills what is lost of the given fields."""

    def __init__(self, blocks: Blocks, geometry: Geometry, fields: Sequence[Field], watch: Watch) -> None:
        self._blocks, self._geometry, self._fields, self._watch = blocks, geometry, fields, watch
        self._spare: tuple[Rows, Sequence[Out], Values] | None = None

    def fill(self, rows: Rows, outs: Sequence[Out], values: Values, lost: Integers) -> Rows:
        """Put others into the places of the rows at ``lost``; the rows that are there now, ``valid`` where meant."""
        self._watch.count(int(rows.valid[lost].sum()))
        there = np.setdiff1d(np.arange(len(rows.block)), lost)
        if len(there):
            donors, from_outs, from_values = rows, outs, values
            chosen = there[np.arange(len(lost)) % len(there)]
        else:
            donors, from_outs, from_values = self._first_readable(outs)
            chosen = np.zeros(len(lost), np.int64)
        for out, donor in zip(outs, from_outs, strict=True):
            targets, sources = rows_of(out), rows_of(donor)
            for place, at in zip(lost.tolist(), chosen.tolist(), strict=True):
                targets[place][:] = sources[at]
        for position, column in values.items():
            for place, at in zip(lost.tolist(), chosen.tolist(), strict=True):
                value = from_values[position][at]
                column[place] = value if value is ABSENT else copy.deepcopy(value)  # a transform may write into it
        block, offset, valid = rows.block.copy(), rows.offset.copy(), rows.valid.copy()
        block[lost], offset[lost], valid[lost] = donors.block[chosen], donors.offset[chosen], False
        return rows._replace(block=block, offset=offset, valid=valid)

    def _first_readable(self, like: Sequence[Out]) -> tuple[Rows, Sequence[Out], Values]:
        """The first row of the first block whose first row can be read, with its values."""
        if self._spare is None:
            buffer = buffer_for(self._blocks, self._fields, 1, keep=True, watch=self._watch)
            outs: list[Out] = [[torch.empty_like(out[0])] for out in like]
            true = np.ones(1, np.bool_)
            for number in range(self._geometry.blocks):
                visit = np.array([number])
                rows = Rows(visit, *self._geometry.stored(visit, np.zeros(1, np.int64)), true, true)
                values = buffer.take(rows, outs)
                if not len(buffer.lost):
                    self._spare = rows, outs, values
                    break
            else:
                raise DamagedError("no block of the cache can be read: there is nothing that on_corrupt='skip' leaves")
        return self._spare
