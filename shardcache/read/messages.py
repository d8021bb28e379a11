"""What a worker process puts into its queue: messages whose tensors travel as loans of the ring.

``transport.py`` has the whole; ``loans.py`` has the functions that these messages call where they arrive.
"""

import io
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch._utils import ExceptionWrapper

from shardcache.read import loans
from shardcache.read.parcels import Buffers, Tensors, with_parcels
from shardcache.read.ring import Region, Rings, Rows, align

PIPE_BYTES = 1024  # a tensor that is not in the ring and smaller than this goes through the pipe
COPIES_BYTES = 64 * 1024  # the least that is taken for copies

_DTYPES = {value: name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_NAMES = {dtype: name for dtype, name in _DTYPES.items() if not name.startswith("q")}  # quantized: not bytes alone


class Packed:
    """A message that is bytes already, on its way through another pickler; ``load`` is called where it arrives."""

    __slots__ = ("load", "payload")

    def __init__(self, payload: bytes, load: Callable[[bytes], object] = pickle.loads) -> None:
        self.payload, self.load = payload, load

    def __reduce__(self) -> tuple[Any, ...]:
        return self.load, (self.payload,)


def pack(rings: Rings, content: object) -> bytes:
    """Pickle a message, for ``pickle.loads``; whatever happens, since the consumer would wait for it without end.

    Should the ring fail, torch's way is next; what cannot be pickled at all becomes an error that is raised there.
    """
    file, have_rows = io.BytesIO(), rings.have_rows
    pickler = (_RowsPickler if have_rows else _Pickler)(file, rings)
    try:
        pickler.dump(with_parcels(content, rings, {}))
        payload = file.getvalue()
        return pickle.dumps(Packed(payload, unpack), 5) if have_rows else payload
    except Exception:
        pickler.withdraw()
        try:
            return _plain(content)
        except Exception as error:
            if not isinstance(content, tuple):  # a DataLoader's message is (number, batch)
                raise
            return _plain((content[0], _failure(error)))


def _plain(content: object) -> bytes:
    return bytes(ForkingPickler.dumps(content, 5))


def _failure(error: Exception) -> ExceptionWrapper:
    """What the DataLoader raises when it meets it in place of a batch."""
    text = "".join(traceback.format_exception(error))
    failure = TypeError(f"this batch cannot be sent to the training process:\n{text}")
    return ExceptionWrapper((TypeError, failure, None), where=f"in process {os.getpid()}")


def unpack(payload: bytes) -> object:
    """What a pickler of rows was given: ``pickle.loads`` would not know what they are."""
    return _Unpickler(io.BytesIO(payload)).load()


class _Pickler(ForkingPickler):
    """One message: tensors by where their data lies, everything else as multiprocessing does."""

    def __init__(self, file: io.BytesIO, rings: Rings) -> None:
        super().__init__(file, 5)
        self._rings = rings
        self._loans: list[tuple[Region, int]] = []
        self._copies: list[tuple[Region, memoryview]] = []  # regions for copies, held until their loans are taken
        self._used = 0  # bytes of the last of them

    def withdraw(self) -> None:
        """The message is not sent."""
        for region, index in self._loans:
            region.ring.withdraw(index)

    def reducer_override(self, thing: Any) -> Any:
        kind = type(thing)
        if kind is Tensor:
            return self._tensor(thing)
        if kind is Region:
            return self._region(thing)
        if kind is Rows:
            return loans.split, (thing.region, thing.offset, _NAMES[thing.dtype], *thing.packed())
        if kind is Buffers or kind is Tensors:
            return self._parcel(thing)
        return NotImplemented

    def _tensor(self, tensor: Tensor) -> Any:
        if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_nested or tensor.requires_grad:
            return NotImplemented
        name, shape = _NAMES.get(tensor.dtype), tuple(tensor.shape)
        if name is None:
            return NotImplemented
        if not tensor.numel():
            return loans.empty, (name, shape)
        if tensor.is_conj() or tensor.is_neg():  # not what its bytes say; torch's own way forgets that
            return self._copied(tensor.resolve_conj().resolve_neg(), name, shape)
        address = tensor.data_ptr()
        region = self._rings.find(address)
        if region is None:
            return NotImplemented if tensor.untyped_storage().is_shared() else self._copied(tensor, name, shape)
        strides = None if tensor.is_contiguous() else tensor.stride()
        return loans.tensor, (region, address - region.address, name, shape, strides)

    def _copied(self, tensor: Tensor, name: str, shape: tuple[int, ...]) -> Any:
        """A tensor that lies elsewhere: its bytes, through the ring or the pipe."""
        count, strides = tensor.numel(), None
        if not tensor.is_contiguous():
            span = loans.span(shape, tensor.stride())
            if span > count:  # there are holes between its elements
                tensor = tensor.contiguous()
            else:
                count, strides = span, tensor.stride()
        flat = tensor.as_strided((count,), (1,))
        place = self._place(flat.nbytes) if flat.nbytes >= PIPE_BYTES else None
        if place is None:
            raw = flat.view(torch.uint8).numpy()
            return loans.tensor, (pickle.PickleBuffer(raw), 0, name, shape, strides)  # type: ignore[arg-type]
        region, memory, offset = place
        torch.frombuffer(memory, dtype=flat.dtype, count=count, offset=offset).copy_(flat)
        return loans.tensor, (region, offset, name, shape, strides)

    def _parcel(self, parcel: Buffers | Tensors) -> Any:
        """A list whose items lie elsewhere."""
        place = self._place(parcel.nbytes)
        if place is None:
            return NotImplemented
        region, memory, offset = place
        parcel.write(memory[offset : offset + parcel.nbytes])
        if isinstance(parcel, Tensors):
            return loans.split, (region, offset, _NAMES[parcel.dtype], *parcel.packed())
        return loans.objects, (region, offset, parcel.is_text, parcel.sizes())

    def _place(self, nbytes: int) -> tuple[Region, memoryview, int] | None:
        """Memory for a copy. A message takes few regions, each as large as those before it, however many its copies."""
        if not self._copies or self._used + nbytes > len(self._copies[-1][1]):
            before = sum(len(memory) for _, memory in self._copies)
            taken = self._rings.take(max(nbytes, before, COPIES_BYTES)) or self._rings.take(nbytes)
            if taken is None:
                return None
            self._copies.append(taken)
            self._used = 0
        offset, self._used = self._used, self._used + align(nbytes)
        return *self._copies[-1], offset

    def _region(self, region: Region) -> Any:
        """Met once a message, since all its tensors share it: here the loan is taken."""
        ring, size = region.ring, region.end - region.start
        index = self._rings.loan(region)
        if index is None:
            return bytearray, (pickle.PickleBuffer(memoryview(ring.memory)[region.start : region.end]),)
        self._loans.append((region, index))
        return loans.loan, (ring.name, os.getpid(), ring.fd, index, region.start, size)


class _RowsPickler(_Pickler):
    """As a pickler asks this of every object, it is used only where there are rows."""

    def persistent_id(self, thing: Any) -> Rows | None:
        """The rows that a list is; it arrives as a list of them (``loans.py``)."""
        if type(thing) is list and thing and set(map(type, thing)) == {Tensor}:
            return self._rings.find_rows(thing)
        return None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: list[Tensor]) -> list[Tensor]:
        """A list that was sent as the rows in it."""
        return pid
