"""Which epoch an iteration is of, also in worker processes that live on."""

import os
import warnings
from typing import Any

import torch

from shardcache.errors import ShardCacheWarning, UsageError

_EPOCH, _STEP, _BEGUN, _WARNED, _ANNOUNCED, _HISTORY = range(6)
_KEPT = 64


class Epochs:
    """The epoch and the first step of the iterations to come.

    A worker process gets a copy when it starts, and its first iteration goes by that. Later iterations of a process
    that lives on (``persistent_workers=True``) go by a few integers in shared memory. They start whenever the worker
    gets to it, and the training process may have set the next epoch by then: so a :class:`Loader` announces each of its
    iterations, and a worker looks up its own by number. An ordinary DataLoader announces nothing; there, the last epoch
    that was set counts.
    """

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self.epoch, self.step = epoch, step
        self._number = 0  # of the last iteration that this copy began or announced
        self._process: int | None = None  # the process in which this copy was iterated
        self._shared = torch.zeros(_HISTORY + 2 * _KEPT, dtype=torch.int64).share_memory_()
        self._shared[:3] = torch.tensor([epoch, step, -1])

    def set(self, epoch: int, step: int | None = None) -> None:
        """The next iteration; without ``step`` it begins at the start, or where it was set for this very epoch."""
        if type(epoch) is not int or epoch < 0:
            raise UsageError(f"epoch must be an int of 0 or more, was {epoch!r}")
        if step is None:
            step = self.step if epoch == self.epoch else 0
        self.epoch, self.step = epoch, step
        self._shared[:2] = torch.tensor([epoch, step])

    def announce(self, warn: bool) -> tuple[int, int]:
        """In the training process, before its workers begin an iteration: (epoch, first step) of it."""
        self._number += 1
        self._shared[self._place()] = torch.tensor([self.epoch, self.step])
        self._shared[_ANNOUNCED] = 1
        if warn:
            self._warn_of_repetition()
        begun, self.step = (self.epoch, self.step), 0
        return begun

    def begin(self, is_worker: bool, warn: bool) -> tuple[int, int]:
        """(epoch, first step) of an iteration that begins now, in this process.

        ``warn`` says once that an epoch comes a second time.
        """
        again, self._process = self._process == os.getpid(), os.getpid()
        if self._shared[_ANNOUNCED]:
            self._number += is_worker and again
            epoch, step = self._shared[self._place()].tolist()
            return epoch, step
        if is_worker and again:
            self.epoch, self.step = self._shared[:2].tolist()
        if warn:
            self._warn_of_repetition()
        begun, self.step = (self.epoch, self.step), 0
        return begun

    def _place(self) -> slice:
        """Where the announced iteration stands."""
        start = _HISTORY + 2 * (self._number % _KEPT)
        return slice(start, start + 2)

    def _warn_of_repetition(self) -> None:
        repeated = int(self._shared[_BEGUN]) == self.epoch
        self._shared[_BEGUN] = self.epoch
        if repeated and not self._shared[_WARNED]:
            self._shared[_WARNED] = 1
            warnings.warn(
                f"epoch {self.epoch} is iterated a second time, in the same order: "
                "call set_epoch(epoch) before each epoch to shuffle anew",
                ShardCacheWarning,
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}
