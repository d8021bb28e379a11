"""Lists of bytes, texts or tensors in a message: each travels as one piece of the ring and the sizes of its items.

Pickled one by one, each byte of them would be copied some six times, the most of them by the kernel in pieces of 64 KiB
through a pipe. This way it is copied into the ring and, where it arrives, out of it into a new object; tensors stay.
"""

from array import array
from collections.abc import Sequence
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shardcache.read.ring import Rings

LEAST_BYTES = 16 * 1024  # of a list; fewer go through the pipe with the message
_DEPTH = 8  # of the structure that is looked through
_JOINED_BYTES = 4096  # items of a smaller mean are joined first

Part = bytes | memoryview | None


class Buffers:
    """A list of bytes or texts, as buffers; None where an item is None."""

    __slots__ = ("is_text", "nbytes", "parts")

    def __init__(self, parts: Sequence[Part], is_text: bool) -> None:
        self.parts, self.is_text = parts, is_text
        self.nbytes = sum([len(part) for part in parts if part is not None])

    @classmethod
    def of(cls, values: Sequence[Any], is_text: bool) -> "Buffers":
        """Bytes, texts or views of what they are made of, mixed."""
        if is_text and str in set(map(type, values)):
            values = [value.encode("utf-8", "surrogatepass") if type(value) is str else value for value in values]
        return cls(values, is_text)

    def sizes(self) -> bytes:
        """The size of each item, -1 for None, as int64."""
        return array("q", [-1 if part is None else len(part) for part in self.parts]).tobytes()

    def write(self, memory: memoryview) -> None:
        """One after the other."""
        parts = [part for part in self.parts if part is not None]
        if self.nbytes < _JOINED_BYTES * len(parts):
            memory[: self.nbytes] = b"".join(parts)
            return
        end = 0
        for part in parts:
            start, end = end, end + len(part)
            memory[start:end] = part

    def __reduce__(self) -> Any:
        """Without the ring: what arrives is the same."""
        if not self.is_text:
            return list, ([None if part is None else bytes(part) for part in self.parts],)
        return list, ([None if part is None else str(part, "utf-8", "surrogatepass") for part in self.parts],)


class Tensors:
    """A list of tensors of one dtype, each of which lies somewhere else."""

    __slots__ = ("dtype", "nbytes", "tensors")

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors, self.dtype = tensors, tensors[0].dtype
        self.nbytes = sum([tensor.nbytes for tensor in tensors])

    def packed(self) -> tuple[str, bytes, list[tuple[int, ...]]]:
        """The sizes in elements, as a NumPy dtype and bytes, and the shapes."""
        return "<i8", np.array([tensor.numel() for tensor in self.tensors], "<i8").tobytes(), self.shapes()

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each."""
        return [tuple(tensor.shape) for tensor in self.tensors]

    def write(self, memory: memoryview) -> None:
        """One after the other."""
        out = torch.frombuffer(memory, dtype=torch.uint8, count=self.nbytes)
        torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in self.tensors], out=out)

    def __reduce__(self) -> Any:
        return list, (self.tensors,)


def with_parcels(thing: Any, rings: Rings, seen: dict[int, Any], depth: int = 0) -> Any:
    """``thing``, in whose dicts, tuples and lists a stand-in replaces each list that can travel as one piece.

    ``seen`` is what was found for each of them, so that what occurs twice still does.
    """
    kind = type(thing)
    if kind not in (dict, tuple, list) or depth > _DEPTH:
        return thing
    if id(thing) not in seen:
        parcel = _parcel(thing, rings) if kind is list else None
        seen[id(thing)] = _rebuilt(thing, rings, seen, depth) if parcel is None else parcel
    return seen[id(thing)]


def _rebuilt(thing: Any, rings: Rings, seen: dict[int, Any], depth: int) -> Any:
    items = list(thing.values() if type(thing) is dict else thing)
    found = [with_parcels(item, rings, seen, depth + 1) for item in items]
    if all(map(_is_same, items, found)):
        return thing
    return dict(zip(thing, found, strict=True)) if type(thing) is dict else type(thing)(found)


def _is_same(one: Any, other: Any) -> bool:
    return one is other


def _parcel(values: list[Any], rings: Rings) -> Buffers | Tensors | None:
    kinds = set(map(type, values))
    if kinds == {Tensor} and len(values) > 1:
        return _parcel_of_tensors(values, rings)
    kinds.discard(NoneType)
    if kinds == {bytes} or kinds == {str}:
        if sum([len(value) for value in values if value is not None]) < LEAST_BYTES:
            return None
        return Buffers.of(values, is_text=kinds == {str})
    return None


def _parcel_of_tensors(tensors: list[Tensor], rings: Rings) -> Tensors | None:
    first = tensors[0].dtype
    for tensor in tensors:
        if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_nested or tensor.requires_grad:
            return None
        if tensor.dtype is not first or tensor.is_quantized or not tensor.is_contiguous():
            return None
        if tensor.is_conj() or tensor.is_neg() or rings.find(tensor.data_ptr()) is not None:
            return None
        if tensor.untyped_storage().is_shared():
            return None
    parcel = Tensors(tensors)
    return parcel if parcel.nbytes >= LEAST_BYTES else None
