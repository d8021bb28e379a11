"""The values of one column in one block <-> a body (:mod:`shardcache.format.spec`, section 6).

:func:`encode` and :func:`decode` stand side by side for each form: *fixed*, *ragged*, *nested*, each with a mask or
without.
"""

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from shardcache.errors import ShardCacheError
from shardcache.format import dtypes, nested, spec
from shardcache.format.arrays import (
    array_bytes,
    arrays_bytes,
    decode_array,
    scalar_bytes,
    tensor_bytes,
    tensor_taker,
    tensors_bytes,
)
from shardcache.format.images import decode_image, encode_image
from shardcache.format.nested import Refused
from shardcache.format.schema import ABSENT, Column
from shardcache.format.texts import are_texts

MASKED = 0x10
NOTHING = MASKED  # an empty form; the manifest has it also where a block has no value of a leaf: not all samples do
NO_VALUE = 0xFF
_NO_VALUES = frozenset((type(None), type(ABSENT)))


class Form(enum.IntEnum):
    """How a body is laid out."""

    EMPTY = 0
    FIXED = 1
    RAGGED = 2
    NESTED = 3


class BodyError(Exception):
    """A body that the specification does not allow; the message says in which way."""


@dataclass(frozen=True)
class Encoded:
    """One column of one block, ready to be stored: its form byte, its body, and rows that get a key of their own."""

    form: int
    body: bytes
    large_rows: dict[int, bytes]


def encode(column: Column, values: Sequence[Any] | None) -> Encoded | None:
    """The body of a column, None where no row has a value. :class:`Refused` names the row in ``path``."""
    if values is None:
        return None
    present, mask, flag = values, b"", 0
    if not _NO_VALUES.isdisjoint(map(type, values)):
        present = [value for value in values if is_value(value)]
        if not present and all(value is ABSENT for value in values):
            return None
        states = bytes(2 if value is ABSENT else 1 if value is None else 0 for value in values)
        mask, flag = states + bytes(-len(states) % spec.MASK_ALIGNMENT), MASKED
    if not present:
        return Encoded(Form.EMPTY | flag, mask, {})
    form, sizes, rows = _encode_rows(column, present)
    if form == Form.FIXED:
        return Encoded(form | flag, mask + rows[0] if mask else rows[0], {})
    large = {}
    if len(values) > 1 and max(map(len, rows)) > spec.LARGE_ROW_BYTES:
        places = [number for number, value in enumerate(values) if is_value(value)]
        large = {places[k]: row for k, row in enumerate(rows) if len(row) > spec.LARGE_ROW_BYTES}
    small = [row for row in rows if len(row) <= spec.LARGE_ROW_BYTES] if large else rows
    return Encoded(form | flag, b"".join([mask, sizes.tobytes(), *small]), large)


def is_value(value: Any) -> bool:
    """Whether a row has something to store beyond its mask."""
    return value is not None and value is not ABSENT


def _encode_rows(column: Column, values: Sequence[Any]) -> tuple[Form, "np.ndarray[Any, Any]", list[bytes]]:
    """(form, sizes, rows); a fixed body is the only row."""
    none = np.empty(0, np.uint64)
    if column.type in ("int", "float", "bool", "scalar") and (body := _fixed_scalars(column, values)) is not None:
        return Form.FIXED, none, [body]
    if column.type in ("array", "tensor") and _all_are(column, values):
        if {value.shape for value in values} == {column.shape}:
            return Form.FIXED, none, [tensors_bytes(values) if column.type == "tensor" else arrays_bytes(values)]
        to_bytes = array_bytes if column.type == "array" else tensor_bytes
        shapes = np.array([value.shape for value in values], np.uint64).reshape(len(values), len(column.shape))
        return Form.RAGGED, shapes, [to_bytes(value) for value in values]
    if column.type in ("str", "bytes", "image") and (rows := _byte_rows(column.type, values)) is not None:
        return Form.RAGGED, np.array(list(map(len, rows)), np.uint64), rows
    rows = []
    for number, value in enumerate(values):
        try:
            rows.append(nested.encode(value))
        except Refused as error:
            raise Refused(error.what, f"{number}{error.path}") from None
    return Form.NESTED, np.array(list(map(len, rows)), np.uint64), rows


def _fixed_scalars(column: Column, values: Sequence[Any]) -> bytes | None:
    dtype = np.dtype(column.dtype)
    if column.type == "scalar":
        if not all(isinstance(value, np.generic) and value.dtype == dtype for value in values):
            return None
        return b"".join(map(scalar_bytes, values))
    if set(map(type, values)) != {_PLAIN[column.type]}:
        return None
    try:
        return np.array(values, dtype).tobytes()
    except OverflowError:
        return None


_PLAIN = {"int": int, "float": float, "bool": bool}


def _all_are(column: Column, values: Sequence[Any]) -> bool:
    dimensions = len(column.shape)
    if column.type == "array":
        is_array = {np.ndarray, np.memmap}.issuperset(map(type, values))
        return is_array and {(value.dtype, value.ndim) for value in values} == {(np.dtype(column.dtype), dimensions)}
    wanted = dtypes.tensor_dtype(column.dtype)
    return all(
        nested.leaf_type(value) == "tensor" and value.dtype == wanted and value.ndim == dimensions for value in values
    )


def _byte_rows(type_: str, values: Sequence[Any]) -> list[bytes] | None:
    if type_ == "image":
        return list(map(encode_image, values)) if {"image"}.issuperset(map(nested.leaf_type, values)) else None
    if set(map(type, values)) != {str if type_ == "str" else bytes}:
        return None
    try:
        return list(map(str.encode, values)) if type_ == "str" else list(values)
    except UnicodeEncodeError:
        return None


Array = np.ndarray[Any, Any]
FetchRow = Callable[[int], Array]


class BlockRows:
    """One column of one block, decoded as far as is cheap for all rows at once: ``value(k)`` is row k.

    ``form`` is the form byte, ``count`` the number of rows of the block. ``fetch`` gets a row with a key of its own;
    ``large`` says which have one, None where none has.

    Thousands are kept at a time, so it is made of few objects that Python's garbage collector must look at.
    """

    __slots__ = (
        "_column",
        "_data",
        "_decode",
        "_is_used",
        "_places",
        "_starts",
        "_take",
        "count",
        "fetch",
        "form",
        "large",
        "shapes",
        "states",
    )

    def __init__(
        self,
        column: Column,
        form: int,
        body: "np.ndarray[Any, Any]",
        count: int,
        decode: nested.Decoder,
        fetch: FetchRow | None = None,
    ) -> None:
        self._column, self._decode, self.fetch = column, decode, fetch
        self.form, self.count = Form(form & ~MASKED), count
        self.states: Array | None = None
        self.shapes: Array | None = None
        self._places: Array | None = None
        self._starts: tuple[int, ...] = ()
        self.large: list[bool] | None = None
        self._is_used = False
        self._take: Callable[[int], Any] | None = None
        present = count
        if form & MASKED:
            length = count + -count % spec.MASK_ALIGNMENT
            _need(len(body) >= length, "shorter than its mask")
            states, body = body[:count], body[length:]
            _need((states <= 2).all(), "masked with an unknown state")
            self.states, self._places = states, np.cumsum(states == 0) - 1
            present = int(self._places[-1]) + 1 if count else 0
        self._data = body
        if self.form == Form.EMPTY:
            _need(not present and not len(body), "an empty form with values")
        elif self.form == Form.FIXED:
            _need(len(body) == present * fixed_row_bytes(column), "not the size of its rows")
        else:
            self._split(present)

    def _split(self, present: int) -> None:
        """Sizes, starts and data of a ragged or nested body. A block has few rows: Python is faster than NumPy here."""
        dimensions = len(self._column.shape) if self.form == Form.RAGGED else 1
        head = present * dimensions * 8
        _need(len(self._data) >= head, "shorter than its sizes")
        words = np.frombuffer(self._data[:head], np.uint64)
        item = dtypes.item_bytes(self._column.type, self._column.dtype) if self.form == Form.RAGGED else 1
        sizes: list[int] = words.tolist()
        if dimensions != 1:
            sizes = [math.prod(sizes[start : start + dimensions]) for start in range(0, head // 8, dimensions)]
            sizes = sizes or [1] * present
        if item != 1:
            sizes = [size * item for size in sizes]
        largest = max(sizes, default=0)
        _need(largest < spec.MAX_BODY_BYTES, "of absurd size")
        if self.form == Form.RAGGED and self._column.type not in ("bytes", "str", "image"):
            self.shapes = words.astype(np.int64).reshape(present, dimensions)
        if self.count > 1 and largest > spec.LARGE_ROW_BYTES:
            self.large = [size > spec.LARGE_ROW_BYTES for size in sizes]
            sizes = [0 if is_large else size for size, is_large in zip(sizes, self.large, strict=True)]
        self._starts = tuple(accumulate(sizes, initial=0))
        self._data = self._data[head:]
        _need(self._starts[-1] == len(self._data), "not the size of its rows")

    @property
    def held_bytes(self) -> int:
        """Memory that this takes, roughly; none for what lies in a map, and cannot be written to."""
        held = self._data.nbytes if self._data.flags.writeable else 0
        if self.form != Form.FIXED:
            return held + 64 * self.count  # sizes and starts
        return held + (36 * self.count if self._column.type in ("int", "float", "bool") else 0)  # as Python has them

    def value(self, row: int) -> Any:
        """The value of a row, owning its memory; None or ABSENT where it has none.

        ValueError where its bytes are not a value.
        """
        try:
            return self._value(row)
        except (ShardCacheError, MemoryError, Warning):
            raise
        except Exception as error:  # what torch, NumPy and Pillow say to numbers that make no sense
            raise ValueError(str(error)) from None

    def taker(self) -> Callable[[int], Any]:
        """As :meth:`value`, for many rows; what it raises is said by :meth:`value` in our words."""
        if self._take is None:
            self._take = self._taker()
        return self._take if self.states is None and self.large is None else self._value

    def views(self) -> Callable[[int], Any]:
        """As :meth:`taker`, but bytes and the UTF-8 of texts may be views of where they lie."""
        bounds, type_ = self._starts, self._column.type if self.form == Form.RAGGED else ""
        take, view = self.taker(), self._data.data
        if take == self._value or not (type_ == "bytes" or (type_ == "str" and are_texts(self._data, bounds))):
            return take
        return lambda row: view[bounds[row] : bounds[row + 1]]

    def _value(self, row: int) -> Any:
        if self.states is not None and self.states[row]:
            return None if self.states[row] == 1 else ABSENT
        place = row if self._places is None else int(self._places[row])
        if self.large is not None and self.large[place]:
            assert self.fetch is not None
            return self._ragged_value(self.fetch(row), place)
        if self._take is None:
            if not self._is_used:
                self._is_used = True
                return self._only(place)
            self._take = self._taker()
        return self._take(place)

    def _only(self, place: int) -> Any:
        """The first value that is asked for: often it is the only one, and not worth more than itself."""
        data, column = self._data, self._column
        if self.form != Form.FIXED:
            return self._ragged_value(data[self._starts[place] : self._starts[place + 1]], place)
        size = fixed_row_bytes(column)
        row = data[place * size : (place + 1) * size]
        if column.type in ("int", "float", "bool"):
            return np.frombuffer(row, column.dtype)[0].item()
        return decode_array(column.type, column.dtype, column.fixed_shape or (), row)

    def _taker(self) -> Callable[[int], Any]:
        """A function from a place among the rows that have a value to the value: what can be done once a block is."""
        data, column = self._data, self._column
        if self.form != Form.FIXED:
            return self._ragged_taker()
        size, shape = fixed_row_bytes(column), column.fixed_shape or ()
        if column.type in ("int", "float", "bool"):
            items: list[Any] = np.frombuffer(data, column.dtype).tolist()
            return items.__getitem__
        if column.type == "tensor" and size:
            return tensor_taker(column.dtype, shape, data, size)
        if column.type == "array" and size and shape:
            arrays = np.frombuffer(data, dtypes.array_dtype(column.dtype)).reshape(-1, *shape)
            return lambda place: arrays[place].copy()
        return lambda place: decode_array(column.type, column.dtype, shape, data[place * size : (place + 1) * size])

    def _ragged_taker(self) -> Callable[[int], Any]:
        bounds, view, type_ = self._starts, self._data.data, self._column.type if self.form == Form.RAGGED else ""
        if type_ == "bytes":
            return lambda place: view[bounds[place] : bounds[place + 1]].tobytes()
        if type_ == "str":
            return lambda place: str(view[bounds[place] : bounds[place + 1]], "utf-8")
        return lambda place: self._ragged_value(view[bounds[place] : bounds[place + 1]], place)

    def _ragged_value(self, data: Any, place: int) -> Any:
        type_ = self._column.type
        if self.form == Form.NESTED:
            return self._decode(memoryview(data))
        if type_ == "bytes":
            return bytes(data)
        if type_ == "str":
            return str(data, "utf-8")
        if type_ == "image":
            return decode_image(memoryview(data))
        assert self.shapes is not None
        return decode_array(type_, self._column.dtype, self.shapes[place].tolist(), data)


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise BodyError(what)


@lru_cache(maxsize=4096)  # asked for with every block
def fixed_row_bytes(column: Column) -> int:
    """Bytes of one row of a fixed body."""
    shape = column.fixed_shape
    if shape is None:
        raise BodyError("fixed, though the column's shape varies")
    count = 1
    for size in shape:
        count *= size
    return count * dtypes.item_bytes(column.type, column.dtype)
