"""The batch ring: how a worker process hands batches to the training process without copying them.

The ordinary DataLoader copies every tensor of a batch into shared memory of its own and passes its descriptor. Here the
worker fills a batch in place, in one shared memory that is used again and again, and its tensors travel as
(loan, offset). Both ends stay the ordinary DataLoader's: a batch is any structure around ordinary tensors.

Who pickles
    A tensor of ours is an ordinary ``torch.Tensor``; only its storage lies in the ring. So whatever a wrapper, a
    ``collate_fn`` or a transform does with it works, and gives ordinary tensors. The place to tell them is the
    worker's queue, whose `put` is wrapped (on this one object): its messages are pickled by ``_Pickler``, which
    looks at where a tensor's data really lies, not at which object it is. A view or a slice of a batch therefore
    travels through the ring as well; ``copy.deepcopy``, ``pickle.dumps`` and other queues never learn of it.
    The message is short, so it is sent at once, without the queue's thread (``outbox.py``).
    Other tensors in a message are copied into the ring: the results of transforms profit too. Lists of bytes and texts
    lie there on their way, and are made again where they arrive (``parcels.py``). Only what asks for more (shared
    memory of the user's, gradients, subclasses, other devices) travels torch's way.

When memory is used again
    A region of the ring is free when no tensor of this process lies in it (a weak reference to the memory that torch
    holds says so) and all its loans have been given back (``loans.py`` says why that needs no lock). When nothing
    is free a batch is made in ordinary memory, and its bytes go through the pipe. So a consumer may keep every
    batch, and a worker too: slower, never wrong, never stuck.

How large it is
    The lowest free region comes first and the file is sparse: what is never needed is never resident, and after a
    burst the top is given back to the system. `slots` bounds it, at that many times the first batch; a batch of more
    than four times the first starts a larger ring. In use at one time are the batch being filled, `prefetch_factor`
    finished ones (2 by default), and two or three at the consumer (the current one, the last one while the next is
    fetched, one at the thread that pins): 16 serve a prefetch_factor of ten, or wrappers that hold some back.

Where there is no memfd or no /proc, "auto" is the ordinary transport.
"""

import math
import multiprocessing
import os
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.queues import Queue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from shardcache.errors import UsageError
from shardcache.read import loans
from shardcache.read.outbox import Outbox
from shardcache.read.ring import LEAST_BYTES, Ring, Rings, align

__all__ = ["RingTransport", "Shapes", "TorchTransport", "Transport", "transport"]

SLOTS = 16

Shapes = Sequence[tuple[torch.dtype, tuple[int, ...]]]
Offsets = Sequence[int] | npt.NDArray[np.integer[Any]]


class Transport(Protocol):
    """Where the tensors of a batch come from."""

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """Tensors to fill and to yield, in any structure; their contents are undefined.

        `shapes` has one (dtype, shape) a tensor.
        """

    def each(self, count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
        """As many tensors to fill and to yield by themselves: one that is kept holds no other's memory."""

    def rows(self, flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """Consecutive views of a one-dimensional tensor: row i is ``flat[offsets[i]:offsets[i + 1]]``.

        `offsets` are in elements, one more than there are rows; `shapes` are the rows' (default: one dimension).
        """


class TorchTransport:
    """Ordinary tensors, which travel as the DataLoader sends any other."""

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """See `Transport.batch`."""
        return [torch.empty(shape, dtype=dtype, device="cpu") for dtype, shape in shapes]

    def each(self, count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
        """See `Transport.each`."""
        return [torch.empty(shape, dtype=dtype, device="cpu") for _ in range(count)]

    def rows(self, flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """See `Transport.rows`."""
        return _cut(flat, offsets, shapes)[0]


class RingTransport:
    """Tensors in shared memory, which `queues` send as references (see the head of this module).

    What is put into a queue, whoever made it, goes this way from now on. The queues must have one receiving process.
    """

    def __init__(self, *queues: "Queue[Any]", slots: int = SLOTS) -> None:
        if slots < 1:
            raise UsageError(f"slots must be at least 1, not {slots}")
        self._rings = Rings(slots)
        for queue in queues:
            vars(queue)["put"] = Outbox(queue, self._rings).put

    def batch(self, shapes: Shapes) -> list[Tensor]:
        """See `Transport.batch`. The tensors cannot grow in place (`resize_` to more elements raises)."""
        need = bytes_of(shapes)
        taken = self._rings.take(need) if need else None
        return TorchTransport().batch(shapes) if taken is None else laid(taken[1], shapes)

    def each(self, count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
        """See `Transport.each`. Small ones are copied into the ring together, when they are sent."""
        if math.prod(shape) * dtype.itemsize < LEAST_BYTES:
            return TorchTransport().each(count, dtype, shape)
        return [tensor for _ in range(count) for tensor in self.batch([(dtype, shape)])]

    def rows(self, flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """See `Transport.rows`. Thousands of rows travel as one tensor and its offsets."""
        rows, packed, sizes, forms = _cut(flat, offsets, shapes)
        self._rings.add_rows(packed, sizes, forms)
        return rows


def transport(kind: str, here: Transport | None = None) -> Transport:
    """The transport for this process: "auto" is the ring where it can be (in a worker, on Linux), "torch" never is.

    `here` is it, in place of the ordinary one, where batches are used in the process that makes them.
    """
    if kind not in ("auto", "torch"):
        raise UsageError(f"transport must be 'auto' or 'torch', not {kind!r}")
    if kind == "torch":
        return TorchTransport()
    if get_worker_info() is None:
        return here or TorchTransport()
    global _of_this_process
    if _of_this_process is None or _of_this_process[0] != os.getpid():
        queues = _queues_to_consumer()
        if not queues or not _is_possible():
            return TorchTransport()
        _of_this_process = os.getpid(), RingTransport(*queues)
    return _of_this_process[1]


_of_this_process: tuple[int, RingTransport] | None = None  # one for all data sets and epochs of a worker


def _queues_to_consumer() -> list["Queue[Any]"]:
    """The queues that a DataLoader gave this worker process: it puts into one of them only."""
    given = getattr(multiprocessing.current_process(), "_args", ())
    return [argument for argument in given if isinstance(argument, Queue)]


def _is_possible() -> bool:
    """Whether a ring can be made here, and opened by the training process: it is asked the other way round."""
    consumer = multiprocessing.parent_process()
    try:
        Ring(0)
        return consumer is not None and bool(os.listdir(f"/proc/{consumer.pid}/fd"))
    except (OSError, AttributeError):  # no memfd_create; no /proc, or a hidden one
        return False


def bytes_of(shapes: Shapes) -> int:
    """How much memory :func:`laid` needs."""
    return sum(align(math.prod(shape) * dtype.itemsize) for dtype, shape in shapes)


def laid(memory: memoryview, shapes: Shapes) -> list[Tensor]:
    """Tensors one after the other in `memory`."""
    tensors, place = [], 0
    for dtype, shape in shapes:
        tensors.append(_over(memory, place, dtype, shape))
        place += align(math.prod(shape) * dtype.itemsize)
    return tensors


def _over(memory: memoryview, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor that lies in `memory` and holds that very object."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).resize_(shape)


def _cut(
    flat: Tensor, offsets: Offsets, shapes: Sequence[tuple[int, ...]] | None
) -> tuple[list[Tensor], Tensor, list[int], list[tuple[int, ...]] | None]:
    """The rows; the part of `flat` that they fill; their sizes and shapes."""
    bounds: list[int] = offsets.tolist() if isinstance(offsets, np.ndarray) else list(offsets)
    sizes = [end - start for start, end in pairwise(bounds)]
    forms = None if shapes is None else [tuple(shape) for shape in shapes]
    packed = flat[bounds[0] : bounds[-1]]
    parts = loans.cut(packed, sizes)
    return parts if forms is None else list(map(Tensor.view, parts, forms)), packed, sizes, forms
