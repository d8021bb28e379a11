"""The batch ring's memory, as the worker process that owns it sees it: which region is free, and for how long.

``loans.py`` has the layout of the file and the reasons why its bytes need no lock; ``transport.py`` has the whole.
"""

import bisect
import contextlib
import mmap
import os
import threading
import uuid
import weakref

import numpy as np
import torch
from torch import Tensor

from shardcache.read.loans import CLOSED, HEAD_BYTES, LOANS, LOANS_AT, NAME_BYTES

PAGE = mmap.PAGESIZE
TRIM_EVERY = 256  # batches
LEAST_BYTES = 1 << 20


def align(nbytes: int) -> int:
    """Where the next tensor may begin in a region: at a cache line."""
    return -(-nbytes // 64) * 64


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


class Region:
    """A part of a ring: one batch, or copies of tensors that a message holds."""

    __slots__ = ("address", "end", "forked", "loans", "owner", "ring", "rows", "start")

    def __init__(self, ring: "Ring", start: int, end: int, owner: memoryview) -> None:
        self.ring, self.start, self.end = ring, start, end
        self.address = ring.address + start
        self.owner = weakref.ref(owner)  # every storage that torch makes over it holds `owner`
        self.loans: list[int] = []
        self.rows: list[Rows] = []
        self.forked = False  # a child of this process has inherited tensors that lie here

    def is_free(self) -> bool:
        """Whether nobody refers to it.

        A loan is only taken while `owner` is alive, so asking for the owner first misses none.
        """
        if self.owner() is not None:
            return False
        self.loans = self.ring.outstanding(self.loans)
        return not self.loans and not self.forked


class Rows:
    """The rows of a ragged column: consecutive views of one tensor, which travel as one."""

    __slots__ = ("addresses", "dtype", "offset", "region", "shapes", "sizes")

    def __init__(self, region: Region, flat: Tensor, sizes: list[int], shapes: list[tuple[int, ...]] | None) -> None:
        self.region, self.dtype, self.sizes = region, flat.dtype, sizes
        self.shapes = shapes or [(size,) for size in sizes]
        address = flat.data_ptr()
        self.offset = address - region.address
        self.addresses = []
        for size in sizes:
            self.addresses.append(address if size else 0)  # as torch says it of a tensor without elements
            address += size * flat.dtype.itemsize

    def are(self, tensors: list[Tensor]) -> bool:
        """Whether `tensors` at these addresses are still what they were made."""
        return (
            list(map(Tensor.size, tensors)) == self.shapes
            and all(map(Tensor.is_contiguous, tensors))
            and {tensor.dtype for tensor in tensors} == {self.dtype}
            and not any(tensor.requires_grad or tensor.is_conj() or tensor.is_neg() for tensor in tensors)
        )

    def packed(self) -> tuple[str, bytes, list[tuple[int, ...]] | None]:
        """Sizes, as a numpy dtype and bytes, and shapes unless every row has one dimension."""
        sizes = np.array(self.sizes)
        sizes = sizes.astype(np.min_scalar_type(int(sizes.max())))
        return sizes.dtype.str, sizes.tobytes(), None if {*map(len, self.shapes)} == {1} else self.shapes


class Ring:
    """One shared memory; regions of any size, the lowest free place first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = _whole_pages(max(capacity, LEAST_BYTES))
        size = HEAD_BYTES + self.capacity
        self.fd = os.memfd_create("shardcache-batches", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd).atexit = False
        os.ftruncate(self.fd, size)
        os.close(os.open(f"/proc/{os.getpid()}/fd/{self.fd}", os.O_RDWR))  # as the training process will
        self.memory = mmap.mmap(self.fd, size)
        self.name = uuid.uuid4().bytes
        self.memory[:NAME_BYTES] = self.name
        self.address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()
        self.end = self.address + size
        self.regions: list[Region] = []  # by start; replaced, never changed, since another thread looks things up
        self._indexes = list(range(LOANS))
        self._takes = self._recent_top = self._resident_top = 0

    def take(self, nbytes: int) -> tuple[Region, memoryview] | None:
        """The lowest free region of `nbytes`, and the memory that has to be held while it is in use."""
        regions = [region for region in self.regions if not region.is_free()]
        room = _whole_pages(nbytes)
        start, place = HEAD_BYTES, 0
        for region in regions:
            if region.start - start >= room:
                break
            start, place = region.end, place + 1
        if start + room > HEAD_BYTES + self.capacity:
            self.regions = regions
            return None
        owner = memoryview(self.memory)[start : start + nbytes]
        taken = Region(self, start, start + room, owner)
        self.regions = [*regions[:place], taken, *regions[place:]]
        self._trim()
        return taken, owner

    def find(self, address: int) -> Region | None:
        """The region in which `address` lies; for an address of which a tensor is alive."""
        regions = self.regions
        place = bisect.bisect_right(regions, address, key=lambda region: region.address) - 1
        return regions[place] if place >= 0 else None

    def loan(self, region: Region) -> int | None:
        """Mark a region as sent; the receiver clears the mark. None: too many are out."""
        if not self._indexes:
            for each in self.regions:
                each.loans = self.outstanding(each.loans)
            if not self._indexes:
                return None
        index = self._indexes.pop()
        self.memory[LOANS_AT + index] = 1
        region.loans = [*self.outstanding(region.loans), index]
        return index

    def withdraw(self, index: int) -> None:
        """Clear the mark of a loan that was never sent."""
        self.memory[LOANS_AT + index] = 0

    def outstanding(self, indexes: list[int]) -> list[int]:
        """Those of `indexes` that have not been given back; the others can be lent again."""
        out = [index for index in indexes if self.memory[LOANS_AT + index]]
        if len(out) != len(indexes):
            self._indexes += set(indexes).difference(out)
        return out

    def retire(self) -> None:
        """Tell the receiver that no new batch will come from here."""
        self.memory[CLOSED] = 1

    def is_drained(self) -> bool:
        """Whether nobody refers to any of it."""
        self.regions = [region for region in self.regions if not region.is_free()]  # they refer to the ring
        return not self.regions

    def _trim(self) -> None:
        """Give the pages above the recent top back to the system, once in a while."""
        top = self.regions[-1].end
        self._recent_top = max(self._recent_top, top)
        self._resident_top = max(self._resident_top, top)
        self._takes += 1
        if self._takes % TRIM_EVERY == 0:
            if self._recent_top < self._resident_top:
                with contextlib.suppress(OSError):
                    self.memory.madvise(mmap.MADV_REMOVE, self._recent_top, self._resident_top - self._recent_top)
            self._resident_top, self._recent_top = self._recent_top, top


class Rings:
    """The ring in use, after those that it took over from and that batches still lie in; for threads of one process."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._home = os.getpid()
        self._lock = threading.Lock()
        self._rings: list[Ring] = []  # replaced, never changed
        self.have_rows = False
        _all_rings.add(self)

    def take(self, nbytes: int) -> tuple[Region, memoryview] | None:
        """A region, and the memory that has to be held while it is in use; None if nothing is free."""
        if self._home != os.getpid():  # a forked child: the ring is its parent's
            return None
        with self._lock:
            if not self._rings or self._slots * nbytes > 4 * self._rings[-1].capacity:
                self._outgrow(nbytes)
            if len(self._rings) > 1:
                self._rings = [*(ring for ring in self._rings[:-1] if not ring.is_drained()), self._rings[-1]]
            return self._rings[-1].take(nbytes) if self._rings else None

    def find(self, address: int) -> Region | None:
        """The region in which `address` lies; for an address of which a tensor is alive."""
        for ring in self._rings:
            if ring.address <= address < ring.end:
                return ring.find(address)
        return None

    def add_rows(self, flat: Tensor, sizes: list[int], shapes: list[tuple[int, ...]] | None) -> None:
        """Remember how a tensor of a batch is cut into rows."""
        region = self.find(flat.data_ptr())
        if region is not None and flat.is_contiguous():
            region.rows.append(Rows(region, flat, sizes, shapes))
            self.have_rows = True

    def find_rows(self, tensors: list[Tensor]) -> Rows | None:
        """The rows that this list has, if it has all of them and nothing else."""
        try:
            addresses = list(map(Tensor.data_ptr, tensors))
        except RuntimeError:  # a sparse tensor has no address
            return None
        region = self.find(next(filter(None, addresses), 0))
        for rows in region.rows if region else ():
            if rows.addresses == addresses and rows.are(tensors):
                return rows
        return None

    def loan(self, region: Region) -> int | None:
        """Mark a region as sent; the receiver clears the mark. None: it cannot be."""
        if self._home != os.getpid():
            return None
        with self._lock:
            return region.ring.loan(region)

    def keep_for_child(self) -> None:
        """Never use again what a forked child is about to inherit: nobody would say when it is done."""
        for ring in self._rings:
            for region in ring.regions:
                region.forked = region.forked or region.owner() is not None

    def _outgrow(self, nbytes: int) -> None:
        with contextlib.suppress(OSError, ValueError, OverflowError):  # descriptors or address space are limited
            ring = Ring(self._slots * _whole_pages(nbytes))
            for old in self._rings:
                old.retire()
            self._rings = [*self._rings, ring]


_all_rings: weakref.WeakSet[Rings] = weakref.WeakSet()


def _before_fork() -> None:
    for rings in tuple(_all_rings):
        rings.keep_for_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
