"""Where batches are made in the process that uses them: in memory that earlier batches lay in.

Fresh memory is cleared page by page when it is first written to: that takes several times as long as what is then
copied into it. What is less than 32 MiB the allocator gives out again (``heap.py`` sees to it); what is more goes back
to the system at once. So large tensors lie in pieces that are kept here, and used again when no tensor lies in them
any more (a weak reference to what torch holds says so). A consumer may keep every batch: then it is ordinary memory.
"""

import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shardcache.read.transport import Shapes, TorchTransport, bytes_of, laid

LEAST_BYTES = 16 << 20
MOST_PIECES = 64
KEPT_FOR = 64  # tensors that are made without a piece: then it is given back


class _Piece:
    def __init__(self, nbytes: int) -> None:
        array = np.empty(nbytes + 64, np.uint8)  # on Linux, in huge pages if it is large
        self.memory = array[-array.ctypes.data % 64 :][:nbytes].data
        self._owner: weakref.ref[memoryview] | None = None
        self.taken = 0

    def is_free(self) -> bool:
        return self._owner is None or self._owner() is None

    def lend(self, nbytes: int) -> memoryview:
        owner = self.memory[:nbytes]
        self._owner = weakref.ref(owner)
        return owner


class Pool(TorchTransport):
    """Ordinary tensors for this process. Those of 16 MiB or more cannot grow in place (`resize_` raises)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[_Piece] = []
        self._takes = 0

    def __reduce__(self) -> Any:
        return Pool, ()

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """See `Transport.batch`."""
        need = bytes_of(shapes)
        memory = self._take(need) if need >= LEAST_BYTES else None
        return super().batch(shapes) if memory is None else laid(memory, shapes)

    def each(self, count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
        """See `Transport.each`."""
        return [tensor for _ in range(count) for tensor in self.batch([(dtype, shape)])]

    def _take(self, nbytes: int) -> memoryview | None:
        """The first free piece that is large enough and not much too large, or a new one; None if too many are held."""
        if not self._lock.acquire(blocking=False):  # another thread: or one that was lost in a fork
            return None
        try:
            self._takes += 1
            if self._takes % KEPT_FOR == 0:
                past = self._takes - KEPT_FOR
                self._pieces = [piece for piece in self._pieces if piece.taken > past or not piece.is_free()]
            for piece in self._pieces:
                if nbytes <= len(piece.memory) <= 4 * nbytes and piece.is_free():
                    break
            else:
                if len(self._pieces) == MOST_PIECES:
                    return None
                piece = _Piece(nbytes)
                self._pieces.append(piece)
            piece.taken = self._takes
            return piece.lend(nbytes)
        finally:
            self._lock.release()
