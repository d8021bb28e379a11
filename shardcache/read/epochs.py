"""Which epoch an iteration is of, also in worker processes that live on."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from shardcache.errors import ShardCacheWarning, UsageError
from shardcache.read.topology import Worker

_EPOCH, _STEP, _BEGUN, _WARNED, _TAKEN, _HISTORY = range(6)
_KEPT = 64


class Epochs:
    """The epoch and the first step of the iterations to come.

    A worker process gets a copy when it starts, and its first iteration goes by that. Later iterations of a process
    that lives on (``persistent_workers=True``) go by a few integers in shared memory. They start whenever the worker
    gets to it, and the training process may have set the next epoch by then: so a :class:`Loader` announces each of its
    iterations, and a worker looks up its own by number. An ordinary DataLoader announces nothing; there, the last epoch
    that was set counts, and a step that was set is for the first iteration after that, in all of its workers.
    """

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self.epoch, self.step = epoch, step
        self._number = 0  # of the last iteration that this copy began or announced
        self._is_announced = False  # whether a Loader begins the iterations of this copy
        self._process: int | None = None  # the process in which this copy was iterated
        self._shared = torch.zeros(_HISTORY + 2 * _KEPT, dtype=torch.int64).share_memory_()
        self._shared[:3] = torch.tensor([epoch, step, -1])

    def set(self, epoch: int, step: int | None = None) -> None:
        """The next iteration; without ``step`` it begins at the start, or where it was set for this very epoch."""
        if type(epoch) is not int or not 0 <= epoch < 1 << 62:
            raise UsageError(f"epoch must be an int of 0 or more (and of 62 bits), was {epoch!r}")
        if step is None:
            step = self.step if epoch == self.epoch else 0
        else:
            self._shared[_TAKEN], self._shared[_BEGUN] = 0, -1  # whoever names a step knows that it comes again
        self.epoch, self.step = epoch, step
        self._shared[:2] = torch.tensor([epoch, step])

    @contextmanager
    def announced(self, warn: bool) -> Iterator[tuple[int, int]]:
        """In the training process, around what makes its workers begin an iteration: (epoch, first step) of it."""
        self._number += 1
        begun, self.step = (self.epoch, self.step), 0
        self._shared[self._place()] = torch.tensor(begun)
        if warn:
            self.warn_of_repetition(begun[0])
        self._is_announced = True  # also in the copies of the workers that start now, for as long as they live
        try:
            yield begun
        finally:
            self._is_announced = False

    def begin(self, worker: Worker) -> tuple[int, int, bool]:
        """(epoch, first step) of an iteration that begins now, in this process, and whether it was announced."""
        again, self._process = worker.is_process and self._process == os.getpid(), os.getpid()
        self._number += again
        if self._is_announced:
            epoch, step = self._shared[self._place()].tolist()
            return epoch, step, True
        if again:
            self.epoch, self.step = self._shared[:2].tolist()
        begun, self.step = (self.epoch, self.step), 0
        if worker.is_process and begun[1] and not self._takes_the_step(worker):
            begun = begun[0], 0
        return *begun, False

    def _takes_the_step(self, worker: Worker) -> bool:
        """Whether this iteration of some workers is the first one since the step was set."""
        this = (worker.pool + self._number) & (1 << 63) - 1
        if not self._shared[_TAKEN]:
            self._shared[_TAKEN] = this
        return int(self._shared[_TAKEN]) == this

    def _place(self) -> slice:
        """Where the announced iteration stands."""
        start = _HISTORY + 2 * (self._number % _KEPT)
        return slice(start, start + 2)

    def warn_of_repetition(self, epoch: int) -> None:
        """Say once that an epoch comes a second time."""
        repeated = int(self._shared[_BEGUN]) == epoch
        self._shared[_BEGUN] = epoch
        if repeated and not self._shared[_WARNED]:
            self._shared[_WARNED] = 1
            warnings.warn(
                f"epoch {epoch} is iterated a second time, in the same order: "
                "call set_epoch(epoch) before each epoch to shuffle anew",
                ShardCacheWarning,
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}
