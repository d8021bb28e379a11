"""Where batches arrive: the training process's side of the batch ring (``transport.py`` is the worker's).

A ring is one anonymous file in memory (memfd) that a worker process made and this process maps:

    byte 0      16 bytes  the ring's name: random, since (pid, descriptor) recurs from one epoch to the next
    byte 16     1 byte    1: the worker has gone on to a larger ring, no new batch will lie in this one
    byte 64     LOANS     one byte a loan: 0 free, 1 taken
    byte 65536  the rest  the batches, in whole pages

Why this is sound without a lock
    A loan is one batch (or a part of one) on its way to, or in, this process. Each of the two changes of its byte has
    one writer: 0 -> 1 by the worker, before it sends the message that carries the loan; 1 -> 0 by this process, once,
    when the last tensor that views the loan is dead (by the worker, if the message could not be made). No byte is ever
    changed by "read, add, write", so no change is lost.
    Order: the worker's writes to the batch come before the message, and a message passes through a pipe, which orders
    memory on every processor. In the other direction a tensor is dead when its storage's count of references, an
    atomic that releases on every decrement and acquires on the last, reaches zero; so all reads through any tensor, by
    any thread, are over before the byte is written, also on ARM, where a plain store may overtake a load. The worker
    writes to the memory again only after a branch on that byte, and no processor writes ahead of a branch.

How a ring is found
    A loan names the worker's process and descriptor; the first one opens ``/proc/<pid>/fd/<descriptor>`` and maps it.
    There is no socket, no thread and no file that a killed process could leave behind. The worker keeps the descriptor
    open while a loan of the ring is out.

How long it stays
    The map is dropped when the worker's process object is (the DataLoader's iterator holds it), or the worker has gone
    on to a larger ring, or is no child of this process; should there be more, it is opened again. Memory that
    batches still view lives until they are dead, whatever became of the worker.

Forks
    A forked child inherits the tensors that are alive, views of shared memory. Their loans are held until
    the child has exited as well: it keeps the writing end of a pipe open, whose reading end is asked when loans die.
"""

import contextlib
import mmap
import multiprocessing
import os
import select
import threading
import weakref
from array import array
from itertools import accumulate, pairwise
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shardcache.errors import ShardCacheError
from shardcache.read import heap

NAME_BYTES = 16
CLOSED = 16
LOANS_AT = 64
LOANS = 4096 - LOANS_AT
HEAD_BYTES = 65536  # the largest page there is

Buffer = memoryview | bytearray


class _Ring:
    """A ring that this process has mapped."""

    def __init__(self, name: bytes, pid: int, memory: mmap.mmap) -> None:
        self.name, self.memory = name, memory
        self.home = os.getpid()  # a child that is forked while another thread receives inherits loans without a guard
        self.live: set[_Loan] = set()
        workers = [process for process in multiprocessing.active_children() if process.pid == pid]
        self.worker: weakref.ref[BaseProcess] | None = weakref.ref(workers[0]) if workers else None
        if workers:
            weakref.finalize(workers[0], _rings.pop, name, None).atexit = False

    def is_over(self) -> bool:
        """Whether no further batch can come through this ring."""
        if self.memory[CLOSED]:
            return not self.live
        worker = self.worker() if self.worker else None
        return worker is not None and not worker.is_alive()


class _Loan:
    """A part of a ring that tensors of this process view."""

    def __init__(self, ring: _Ring, index: int) -> None:
        self.ring, self.index = ring, index
        self.guards: set[int] = set()  # of forked children that inherited the tensors
        self.dead = False
        ring.live.add(self)

    def end(self) -> None:
        """The last tensor is dead. Runs wherever it died, in any thread: takes no lock."""
        if self.ring.home == os.getpid():
            self.dead = True
            if _guards:
                _ask_children()
            self.give_back()

    def give_back(self) -> None:
        if self.dead and not self.guards and self in self.ring.live:
            self.ring.live.discard(self)
            self.ring.memory[LOANS_AT + self.index] = 0
            if not self.ring.live and (self.ring.memory[CLOSED] or self.ring.worker is None):
                _rings.pop(self.ring.name, None)


_rings: dict[bytes, _Ring] = {}
_guards: dict[int, list[_Loan]] = {}  # the reading end of a pipe to a forked child: what that child inherited
_fork = threading.local()  # the writing end, between the two sides of a fork


# The names that messages hold: every function here is called by an unpickler, in the training process.


def loan(name: bytes, pid: int, descriptor: int, index: int, start: int, nbytes: int) -> memoryview:
    """The memory of a batch; it is given back to the worker when the last tensor that views it is dead."""
    ring = _rings.get(name) or _open(name, pid, descriptor)
    view = memoryview(ring.memory)[start : start + nbytes]
    weakref.finalize(view, _Loan(ring, index).end).atexit = False  # torch.frombuffer holds this very object
    return view


def tensor(
    memory: Buffer, offset: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> Tensor:
    """A tensor over a loan, or over bytes that came through the pipe; `offset` in bytes, `strides` in elements."""
    count = span(shape, strides)
    flat = torch.frombuffer(memory, dtype=getattr(torch, dtype), count=count, offset=offset)
    return flat.resize_(shape) if strides is None else flat.as_strided_(shape, strides)


def empty(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor without elements."""
    return torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")


def split(
    memory: Buffer, offset: int, dtype: str, kind: str, sizes: bytes, shapes: list[tuple[int, ...]] | None
) -> list[Tensor]:
    """Rows that lie one after the other; their sizes in elements, an array of the numpy dtype `kind`."""
    counts: list[int] = np.frombuffer(sizes, kind).tolist()
    parts = cut(tensor(memory, offset, dtype, (sum(counts),)), counts)
    return parts if shapes is None else list(map(Tensor.resize_, parts, shapes))


def objects(memory: Buffer, offset: int, is_text: bool, sizes: bytes) -> list[Any]:
    """Bytes or texts that lie one after the other, each copied out; their sizes are int64, -1 for None."""
    counts, view = array("q", sizes), memoryview(memory)
    ends = list(accumulate([max(0, count) for count in counts], initial=offset))
    heap.keep_room(ends[-1] - offset)
    if is_text:
        found: list[Any] = [str(view[start:end], "utf-8", "surrogatepass") for start, end in pairwise(ends)]
    else:
        found = [view[start:end].tobytes() for start, end in pairwise(ends)]
    return [None if count < 0 else value for value, count in zip(found, counts, strict=True)] if -1 in counts else found


def cut(flat: Tensor, sizes: list[int]) -> list[Tensor]:
    """Consecutive parts of a tensor of one dimension.

    Not by `split`: autograd forbids writing into what several views of one call are; "unsafe" ones are tensors.
    """
    return list(flat.unsafe_split_with_sizes(sizes))


def span(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """Elements from the first of a tensor to its last, both included."""
    count = 1
    if strides is None:
        for size in shape:
            count *= size
    else:
        for size, stride in zip(shape, strides, strict=True):
            count += (size - 1) * stride
    return count


def _open(name: bytes, pid: int, descriptor: int) -> _Ring:
    for ring in tuple(_rings.values()):
        if ring.is_over():
            _rings.pop(ring.name, None)
    try:
        handle = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(handle, 0)
        finally:
            os.close(handle)
    except OSError as error:
        raise ShardCacheError(
            f"the batch ring of worker process {pid} must be open to this process, but: {error} "
            "(the worker has died, or this system hides it: then transport='torch' helps)"
        ) from error
    if memory[:NAME_BYTES] != name:
        raise ShardCacheError(f"descriptor {descriptor} of worker process {pid} is not the batch ring that it was")
    return _rings.setdefault(name, _Ring(name, pid, memory))


def _ask_children() -> None:
    """Let go of what was held for forked children that have exited. It may run in two threads, and within itself."""
    asked = select.poll()
    for read_end in tuple(_guards):
        asked.register(read_end, select.POLLIN)
    for read_end, _ in asked.poll(0):
        held = _guards.pop(read_end, None)
        if held is not None:
            for loan in held:
                loan.guards.discard(read_end)
                loan.give_back()
            os.close(read_end)


def _before_fork() -> None:
    held = [loan for ring in tuple(_rings.values()) for loan in tuple(ring.live)]
    _fork.write_end, read_end = None, -1
    if held:
        with contextlib.suppress(OSError):  # out of descriptors: then these loans are never given back
            read_end, _fork.write_end = os.pipe()
            _guards[read_end] = held
    for loan in held:
        loan.guards.add(read_end)


def _after_fork_in_parent() -> None:
    if _fork.write_end is not None:
        os.close(_fork.write_end)


def _after_fork_in_child() -> None:
    """Keep what tensors view and nothing else: a loader's memory must not live as long as another loader's workers."""
    for read_end in _guards:
        os.close(read_end)
    _guards.clear()
    _rings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
