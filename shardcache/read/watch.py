"""What each worker reads just now, and how many rows it could not read: integers that the training process sees.

A worker that dies of a memory map's SIGBUS says nothing more, so it writes down beforehand which shard it turns to.
"""

import os
import warnings

import torch

from shardcache.errors import DamagedError, ShardCacheWarning

_WORKERS = 1024  # those beyond share the cells of others, which makes messages less exact and nothing else
_PID, _SHARD, _SKIPPED = range(3)


class Board:
    """A line for each worker of a dataset's loader, in shared memory; each writes its own."""

    def __init__(self) -> None:
        self._lines = torch.zeros((_WORKERS, 3), dtype=torch.int64).share_memory_()
        self._warned: set[int] = set()  # blocks, in this process

    def watch(self, worker: int, blocks_per_shard: int, *, skip: bool) -> "Watch":
        """What the reading side of worker number ``worker`` reports to."""
        line = self._lines[worker % _WORKERS]
        line[_PID] = os.getpid()
        return Watch(line, blocks_per_shard, skip=skip, warned=self._warned)

    @property
    def skipped(self) -> int:
        """Rows that could not be read, up to now, in all workers."""
        return int(self._lines[:, _SKIPPED].sum())

    def shard_of(self, pid: int) -> int | None:
        """The shard that a process turned to last."""
        found = torch.nonzero(self._lines[:, _PID] == pid)
        return int(self._lines[found[0, 0], _SHARD]) if len(found) else None


class Watch:
    """One worker's line of a :class:`Board`; without one, of nobody's."""

    def __init__(
        self,
        line: torch.Tensor | None = None,
        blocks_per_shard: int = 1,
        *,
        skip: bool = False,
        warned: set[int] | None = None,
    ) -> None:
        self._line = (torch.zeros(3, dtype=torch.int64) if line is None else line).numpy()
        self._blocks_per_shard, self.skips = blocks_per_shard, skip
        self._warned: set[int] = set() if warned is None else warned

    def turn_to(self, block: int) -> None:
        """A block is about to be read."""
        self._line[_SHARD] = block // self._blocks_per_shard

    def lose(self, block: int, rows: int, error: DamagedError) -> None:
        """``rows`` of a block could not be read: raise, or say so once where such are to be skipped."""
        if not self.skips:
            raise error
        if block not in self._warned:
            self._warned.add(block)
            samples = f"{rows} sample{'s' * (rows > 1)}"
            warnings.warn(f"{error}; {samples} skipped (on_corrupt='skip')", ShardCacheWarning, stacklevel=2)

    def count(self, rows: int) -> None:
        """That many rows of the plan are not what is delivered in their places."""
        self._line[_SKIPPED] += rows
