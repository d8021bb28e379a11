"""The batch ring: how a worker process hands batches to the training process without copying them.

The ordinary DataLoader copies every tensor of a batch into shared memory of its own and passes its descriptor. Here the
worker fills a batch in place, in one shared memory that is used again and again, and its tensors travel as
(lease, offset). Both ends stay the ordinary DataLoader's: a batch is any structure around ordinary tensors.

Who pickles
    A tensor of ours is an ordinary ``torch.Tensor``; only its storage lies in the ring. So whatever a wrapper, a
    ``collate_fn`` or a transform does with it works, and gives ordinary tensors. The place to tell them is the
    worker's queue, whose `put` is wrapped (on this one object): its messages are pickled by ``_Pickler``, which
    looks at where a tensor's data really lies, not at which object it is. A view or a slice of a batch therefore
    travels through the ring as well; ``copy.deepcopy``, ``pickle.dumps`` and other queues never learn of it.
    Other tensors in a message are copied into the ring: the results of transforms profit too. Only what
    asks for more (shared memory of the user's, gradients, subclasses, other devices) travels torch's way.

When memory is used again
    A region of the ring is free when no tensor of this process lies in it (a weak reference to the memory that torch
    holds says so) and all its leases have been given back (``leases.py`` says why that needs no lock). When nothing
    is free a batch is made in ordinary memory, and its bytes go through the pipe. So a consumer may keep every
    batch, and a worker too: slower, never wrong, never stuck.

How large it is
    The lowest free region comes first and the file is sparse: what is never needed is never resident, and after a
    burst the top is given back to the system. `slots` only bounds it, at that many of the largest batches (if none ever
    is a quarter of that, the bound is what it was; else a larger ring takes over). In use at the same time are the one
    being filled, `prefetch_factor` (2 by default) finished ones, and two or three that the consumer holds (the
    current one, the last one while the next is fetched, one at the thread that pins), so 16 serve a prefetch_factor of
    ten, and wrappers that hold some back.

Where there is no memfd or no /proc, "auto" is the ordinary transport.
"""

import bisect
import contextlib
import io
import mmap
import multiprocessing
import multiprocessing.queues
import operator
import os
import pickle
import sys
import threading
import traceback
import uuid
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from shardcache.errors import UsageError
from shardcache.read import leases

__all__ = ["RingTransport", "Shapes", "TorchTransport", "Transport", "transport"]

SLOTS = 16
ALIGNMENT = 64  # of a tensor in its region: a cache line
PIPE_BYTES = 32 * 1024  # a tensor that is not in the ring and smaller than this goes through the pipe
TRIM_EVERY = 256  # batches

Shapes = Sequence[tuple[torch.dtype, tuple[int, ...]]]
Offsets = Sequence[int] | npt.NDArray[np.integer[Any]]


class Transport(Protocol):
    """Where the tensors of a batch come from."""

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """Tensors to fill and to yield, in any structure; their contents are undefined.

        `shapes` has one (dtype, shape) a tensor.
        """

    def rows(self, flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """Consecutive views of a one-dimensional tensor: row i is ``flat[offsets[i]:offsets[i + 1]]``.

        `offsets` are in elements, one more than there are rows; `shapes` are the rows' (default: one dimension).
        """


class TorchTransport:
    """Ordinary tensors, which travel as the DataLoader sends any other."""

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """See `Transport.batch`."""
        return [torch.empty(shape, dtype=dtype, device="cpu") for dtype, shape in shapes]

    def rows(self, flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """See `Transport.rows`."""
        return _cut(flat, *_normal(offsets, shapes))


class RingTransport:
    """Tensors in shared memory, which `queue` sends as references (see the head of this module).

    One for each worker process: everything that is put into `queue`, whoever made it, profits from it. `queue` must have
    one receiving process, on this machine.
    """

    def __init__(self, queue: "multiprocessing.queues.Queue[Any]", *, slots: int = SLOTS) -> None:
        if slots < 1:
            raise UsageError(f"slots must be at least 1, not {slots}")
        self._rings = Rings(slots)
        put = queue.put

        def put_message(content: object, *args: Any, **kwargs: Any) -> None:
            put(_Message(self._rings, content), *args, **kwargs)

        vars(queue)["put"] = put_message

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """See `Transport.batch`. The tensors cannot grow in place (`resize_` to more elements raises)."""
        places, need = [], 0
        for dtype, shape in shapes:
            places.append(need)
            need += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        taken = self._rings.take(need) if need else None
        if taken is None:
            return TorchTransport().batch(shapes)
        return [_over(taken[1], place, dtype, shape) for place, (dtype, shape) in zip(places, shapes, strict=True)]

    def rows(self, flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """See `Transport.rows`. Thousands of rows travel as one tensor and its offsets."""
        bounds, forms = _normal(offsets, shapes)
        region = self._rings.find(flat.data_ptr())
        if region is not None and flat.is_contiguous():
            region.rows.append(Rows(region, flat, bounds, forms))
        return _cut(flat, bounds, forms)
