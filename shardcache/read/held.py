"""Blocks that single samples are read from, kept for the next sample."""

import threading
from collections.abc import Callable
from typing import Any

from shardcache.read.blocks import Blocks
from shardcache.read.fields import Assembler

MAX_HELD_BYTES = 16 << 20  # a thread
_BLOCK_BYTES = 1024  # the objects around it, roughly
_LARGE_BYTES = 32 << 10


class _Held:
    """One of them, which gives samples: by :meth:`sample`, or with less ado by ``take`` once it is worth its while."""

    __slots__ = ("_assembler", "_blocks", "_columns", "_file", "_number", "_opened", "_uses", "bytes", "take")

    def __init__(self, blocks: Blocks, assembler: Assembler, number: int) -> None:
        self._blocks, self._assembler, self._number, self._uses = blocks, assembler, number, 0
        self._columns, self._file, self._opened = blocks.open(number, assembler.positions)
        self.bytes = _BLOCK_BYTES + sum(rows.held_bytes for rows in self._columns.values())
        self.take: Callable[[int], Any] | None = None

    def is_still_there(self) -> bool:
        """Whether its file is the one that was opened."""
        return self._file.is_still(self._opened)

    def sample(self, offset: int) -> Any:
        """The sample at a row of the block."""
        if self.take is not None:
            try:
                return self.take(offset)
            except Exception:  # said in our words below
                self.take = None
        self._uses += 1
        if self._uses == 2:
            self.take = self._assembler.taker(self._columns)
        return self._assembler.join(self._blocks.values(self._columns, self._number, offset))


class HeldBlocks(threading.local):
    """What a thread has read last, at most ``MAX_HELD_BYTES`` of it; the oldest goes first.

    Of blocks that had to be decoded or copied only the last is held, and the next one takes its place in memory: at
    random it is hardly ever met again, and memory that is used again is in the processor's cache. What is not
    compressed stays in the map of its shard, so that thousands of blocks are held in a few megabytes. It was compared
    with its checksum once. Whether its file is still the one that was opened, and was not modified, is looked at for
    each sample.
    """

    def __init__(self, blocks: Blocks, assembler: Assembler) -> None:
        self._blocks, self._assembler = blocks, assembler
        self._held: dict[int, _Held] = {}
        self._bytes, self._large = 0, -1

    def samples(self, number: int) -> Callable[[int], Any]:
        """What gives the sample at a row of block ``number``."""
        found = self._held.get(number)
        if found is not None:
            if found.is_still_there():
                return found.sample
            self._drop(number)
        if self._large in self._held:
            self._drop(self._large)
        held = self._held[number] = _Held(self._blocks, self._assembler, number)
        self._bytes += held.bytes
        self._large = number if held.bytes > _LARGE_BYTES else -1
        while self._bytes > MAX_HELD_BYTES and len(self._held) > 1:
            self._drop(next(iter(self._held)))
        return held.sample

    def _drop(self, number: int) -> None:
        self._bytes -= self._held.pop(number).bytes
