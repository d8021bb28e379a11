"""Blocks that single samples are read from, kept for the next sample."""

import threading
from collections.abc import Sequence

from shardcache.format.columns import BlockRows
from shardcache.read.blocks import Blocks, OpenBlock

MAX_HELD_BYTES = 16 << 20  # a thread
_BLOCK_BYTES = 1024  # the objects around it, roughly
_LARGE_BYTES = 32 << 10


class HeldBlocks(threading.local):
    """What a thread has read last, at most ``MAX_HELD_BYTES`` of it; the oldest goes first.

    Of blocks that had to be decoded or copied only the last is held, and the next one takes its place in memory: at
    random it is hardly ever met again, and memory that is used again is in the processor's cache. What is not
    compressed stays in the map of its shard, so that thousands of blocks are held in a few megabytes. It was compared
    with its checksum once. Whether its file is still the one that was opened, and was not modified, is looked at for
    each sample.
    """

    def __init__(self, blocks: Blocks, positions: Sequence[int]) -> None:
        self._blocks, self._positions = blocks, positions
        self._held: dict[int, tuple[OpenBlock, int]] = {}
        self._bytes, self._large = 0, -1

    def columns(self, number: int) -> dict[int, BlockRows]:
        """The columns of block ``number``."""
        found = self._held.get(number)
        if found is not None:
            if found[0].file.is_still(found[0].opened):
                return found[0].columns
            self._drop(number)
        if self._large in self._held:
            self._drop(self._large)
        held = self._blocks.open(number, self._positions)
        size = _BLOCK_BYTES + sum(rows.held_bytes for rows in held.columns.values())
        self._held[number] = held, size
        self._bytes += size
        self._large = number if size > _LARGE_BYTES else -1
        while self._bytes > MAX_HELD_BYTES and len(self._held) > 1:
            self._drop(next(iter(self._held)))
        return held.columns

    def _drop(self, number: int) -> None:
        self._bytes -= self._held.pop(number)[1]
