"""Which epoch an iteration is of, also in worker processes that live on."""

import os
import warnings
from typing import Any

import torch

from shardcache.errors import ShardCacheWarning, UsageError

_EPOCH, _STEP, _BEGUN, _WARNED = range(4)


class Epochs:
    """The epoch and the first step of the iterations to come.

    A worker process gets a copy when it starts, and its first iteration goes by that. Later iterations of a process that
    lives on (``persistent_workers=True``) go by a few integers in shared memory, which every copy writes and reads.
    """

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self.epoch, self.step = epoch, step
        self._shared = torch.tensor([epoch, step, -1, 0], dtype=torch.int64).share_memory_()
        self._process: int | None = None  # the process in which this copy was iterated

    def set(self, epoch: int, step: int | None = None) -> None:
        """The next iteration; without ``step`` it begins at the start, or where :meth:`set` said for this very epoch."""
        if type(epoch) is not int or epoch < 0:
            raise UsageError(f"epoch must be an int of 0 or more, was {epoch!r}")
        if step is None:
            step = self.step if epoch == self.epoch else 0
        self.epoch, self.step = epoch, step
        self._shared[_STEP], self._shared[_EPOCH] = step, epoch

    def begin(self, is_worker: bool, warn: bool) -> tuple[int, int]:
        """(epoch, first step) of an iteration that begins now; ``warn`` says once that an epoch comes a second time."""
        if is_worker and self._process == os.getpid():
            self.epoch, self.step = int(self._shared[_EPOCH]), int(self._shared[_STEP])
        self._process = os.getpid()
        if warn:
            self._warn_of_repetition()
        return self.epoch, self.step

    def _warn_of_repetition(self) -> None:
        repeated, self._shared[_BEGUN] = int(self._shared[_BEGUN]) == self.epoch, self.epoch
        if repeated and not int(self._shared[_WARNED]):
            self._shared[_WARNED] = 1
            warnings.warn(
                f"epoch {self.epoch} is iterated a second time, in the same order: "
                "call set_epoch(epoch) before each epoch to shuffle anew",
                ShardCacheWarning,
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}
