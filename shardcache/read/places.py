"""Where single samples lie: a permutation that is asked for one number after the other."""

import math
from array import array

import numpy as np

from shardcache.format.permutation import Permutation, Windows

MAX_TABLE = 1 << 18  # entries, of four bytes
_PART = 32  # of all: once so many were worked out, to write all down costs about as much again


class Places:
    """The row of a source index, one at a time. What was asked for often is written down, if it is short."""

    def __init__(self, permutation: Permutation | Windows) -> None:
        self._permutation, self._table = permutation, array("I")
        length = permutation.length
        self._left = length // _PART if length <= MAX_TABLE else math.inf  # to be worked out before

    def row(self, source: int) -> int:
        """Where the sample of an index in the dataset lies."""
        if self._table:
            return self._table[source]
        if self._left:
            self._left -= 1
            return self._permutation.inverse(source)
        rows = self._permutation.inverse(np.arange(self._permutation.length))
        self._table = array("I", rows.astype(np.uint32).tobytes())
        return self._table[source]
