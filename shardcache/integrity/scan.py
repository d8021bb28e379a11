"""One pass over a shard: its values by their keys, and the SHA-256 of the file.

A window goes over the file. What comes into it is read once and hashed; the values in it are looked at while they are
still in the processor's cache. Values are asked for in the order of their keys, and that is nearly the order in which
they lie: one that lies behind the window, or is small and lies elsewhere, is read by itself.

Nothing is mapped: a file that is truncated meanwhile, and a disk that fails, are errors.
"""

import hashlib
from bisect import bisect_left

import numpy as np

from shardcache.errors import DamagedShardError
from shardcache.format import leases, pages
from shardcache.format.files import let_go
from shardcache.format.leases import ShardFile

WINDOW_BYTES = 2 << 20  # smaller ones cost threads that wait for each other
_SMALL_BYTES = 4 << 10  # LMDB keeps such values among the nodes of its tree, which may lie anywhere


class Scan:
    """A pass over a shard whose size and structure are what they must be; ``close`` ends it. For one thread.

    Raises:
        MissingShardError: there is no file.
        DamagedShardError: it is not the file that was sealed.
        StorageError: the operating system refused to open it.
    """

    def __init__(self, file: ShardFile) -> None:
        self._name, self._file_bytes = file.name, file.seal.file_bytes
        self._fd, _ = leases.open_file(file)
        try:
            table = pages.table(self._fd, file.seal, file.name)
        except BaseException:
            self.close()
            raise
        self._keys, self._offsets, self._sizes = table.keys.data, table.offsets.data, table.sizes.data
        self._is_asked = bytearray(len(self._keys))
        self._sha256, self._window, self._start, self._end = hashlib.sha256(), memoryview(b""), 0, 0
        self._failed: DamagedShardError | None = None  # a part of the file could not be read, so there is no SHA-256

    def close(self) -> None:
        """Nothing can be read any more; values that were read stay."""
        let_go(self._fd)

    def peek(self, key: bytes) -> memoryview:
        """The value of a key, read by itself; :class:`DamagedShardError` where there is none, or it cannot be read."""
        return self._read(*self._place(key))

    def value(self, key: bytes) -> memoryview:
        """The same, for keys in their order."""
        offset, size = self._place(key)
        is_inside = self._start <= offset <= offset + size <= self._end
        is_ahead = offset >= self._start and size > _SMALL_BYTES
        if is_inside or (is_ahead and self._can_move(offset, size)):
            return self._window[offset - self._start : offset - self._start + size]
        return self._read(offset, size)

    def sha256(self) -> str:
        """Of the whole file, in hex; :class:`DamagedShardError` where some of it cannot be read."""
        if self._failed is None:
            self._can_move(self._file_bytes, 0)
        if self._failed is not None:
            raise self._failed
        return self._sha256.hexdigest()

    def unasked(self) -> tuple[int, bytes]:
        """How many values nobody has asked for, and the first key of one."""
        first = self._is_asked.find(0)
        return self._is_asked.count(0), b"" if first < 0 else self._keys[first].to_bytes(pages.KEY_BYTES, "big")

    def _place(self, key: bytes) -> tuple[int, int]:
        number = int.from_bytes(key, "big")
        at = bisect_left(self._keys, number)
        if at == len(self._keys) or self._keys[at] != number:
            raise leases.no_value(self._name, key)
        self._is_asked[at] = 1
        return self._offsets[at], self._sizes[at]

    def _read(self, offset: int, size: int) -> memoryview:
        data = np.empty(size, np.uint8).data
        pages.preadv(self._fd, [data], offset, self._name)
        return data

    def _can_move(self, offset: int, size: int) -> bool:
        """Whether the window begins at ``offset`` now and holds ``size`` bytes: not where some cannot be read."""
        try:
            while self._failed is None and self._end < offset:  # nothing but pages of the tree, and free ones
                self._extend(self._end, 0)
            if self._failed is None:
                self._extend(offset, size)
        except DamagedShardError as error:
            self._failed = error
        return self._failed is None

    def _extend(self, start: int, size: int) -> None:
        """Let the window begin at ``start``, in it or at its end, in memory of its own: values are views of the old."""
        kept = self._window[start - self._start :]
        length = min(max(size, WINDOW_BYTES), self._file_bytes - start)
        window = np.empty(max(length, len(kept)), np.uint8).data
        window[: len(kept)] = kept
        new = window[len(kept) :]
        pages.preadv(self._fd, [new], self._end, self._name)
        self._sha256.update(new)
        self._window, self._start, self._end = window, start, start + len(window)
