"""The limit: samples that lie in memory already are copied into new objects, in a shuffled order, and nothing else.

Nobody who hands out samples that are the caller's own can be faster than this in one thread; what it reaches against a
peer says how far an aim against that peer can be met at all.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.peers.peer import PROCESS, SAMPLES, THREAD, Epoch, Peer, Task


class Memory(Peer):
    name = "memory"
    package = "numpy"
    note = "not a loader but the limit: each sample is copied from memory into an object of its own, or gathered"
    modes = (PROCESS, THREAD, SAMPLES)
    kinds = ("array", "bytes", "text")

    def write(self, task: Task, smallest: bool = False) -> None:
        """The source is what it reads."""

    def epochs(self, task: Task, mode: str) -> Epoch:  # noqa: ARG002  # it has one thread, and that is the caller's
        held = Held(task)
        return lambda number: held.batches(number, task.batch_size)

    def samples(self, task: Task) -> Epoch:
        return Held(task).samples


class Held:
    """The samples of a source, in memory: of arrays one table, of others a buffer for each."""

    def __init__(self, task: Task) -> None:
        source = task.source
        self._kind, self._count = task.kind, len(source)
        if task.kind == "array":
            self._table = np.stack([source.read(index) for index in range(len(source))])
        else:
            values = (source.read(index) for index in range(len(source)))
            self._values = [bytearray(value.encode() if task.kind == "text" else value) for value in values]

    @cached_property
    def _copy(self) -> Callable[[int], Any]:
        """A new object for the sample at an index."""
        if self._kind == "array":
            table = self._table
            return lambda index: table[index].copy()
        values = self._values
        if self._kind == "text":
            return lambda index: str(values[index], "utf-8")
        return lambda index: bytes(values[index])

    def samples(self, number: int) -> Iterator[dict[str, Any]]:
        """The samples of epoch ``number``, one by one."""
        copy = self._copy
        return ({"x": copy(index), "index": index} for index in self._order(number).tolist())

    def batches(self, number: int, size: int) -> Iterator[dict[str, Any]]:
        """Its batches: of arrays a gather, of others a list of copies."""
        order, copy = self._order(number), self._copy
        for start in range(0, len(order), size):
            index = order[start : start + size]
            x = self._table[index] if self._kind == "array" else [copy(at) for at in index.tolist()]
            yield {"x": x, "index": index}

    def _order(self, number: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        return np.random.default_rng(number).permutation(self._count)


MEMORY = Memory()
