"""Any storable value <-> one MessagePack value (:mod:`shardcache.format.spec`, section 6).

Plain lists, dicts and numbers are decoded at msgspec's speed; only what MessagePack has no word for takes an extension.
"""

import collections
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from shardcache.errors import MissingExtraError
from shardcache.format import dtypes, spec
from shardcache.format.arrays import array_bytes, decode_array, decode_quantized, scalar_bytes, tensor_bytes
from shardcache.format.images import decode_image, encode_image
from shardcache.format.schema import is_class_name, plain_record, record_kind, record_maker

TUPLE, BIG_INT, ARRAY, IMAGE, TEXT, RECORD, ORDERED, QUANTIZED, PAIRS = range(1, 10)
_WITH_CONTENT = frozenset((TUPLE, ARRAY, RECORD, ORDERED, QUANTIZED, PAIRS))


class Refused(Exception):
    """A value that has no place in the format: ``path`` below the column, and what it is."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what, self.path = what, path


def encode(value: Any) -> bytes:
    """One value as MessagePack; :class:`Refused` where the format has no place for it."""
    try:
        return _pack(_wrap(value, 0))
    except RecursionError:
        raise Refused(f"a value that is nested more than {spec.MAX_NESTED_DEPTH} deep, or contains itself") from None


Decoder = Callable[[Any], Any]


def decoder(types: Sequence[type] = ()) -> Decoder:
    """A function from the bytes of one value to the value; it raises ValueError where they are not one.

    Records come back as the class in ``types`` that has their name and fields, else as namedtuples.
    """
    records = {record_kind(cls): record_maker(cls) for cls in reversed(types)}

    def unwrap(code: int, data: memoryview) -> Any:
        if code == BIG_INT:
            return int.from_bytes(data, "little", signed=True)
        if code == TEXT:
            return bytes(data).decode("utf-8", "surrogatepass")
        if code == IMAGE:
            return decode_image(data)
        if code not in _WITH_CONTENT:
            raise ValueError(f"extension {code} is not one of the format")
        content = msgspec.msgpack.decode(data, type=list, ext_hook=unwrap)
        if code == TUPLE:
            return tuple(content)
        if code == ORDERED:
            return collections.OrderedDict((key, value) for key, value in content)
        if code == PAIRS:
            return {key: value for key, value in content}  # noqa: C416  # a pair has two parts, not one or three
        if code == ARRAY:
            return decode_array(*content)
        if code == QUANTIZED:
            return decode_quantized(*content)
        return unwrap_record(*content)

    def unwrap_record(name: str, fields: list[str], is_dataclass: bool, values: list[Any]) -> Any:
        if not (is_class_name(name) and len(fields) == len(values) and all(type(field) is str for field in fields)):
            raise ValueError("a record without a name, or with a part too many")
        make = records.get((name, tuple(fields), is_dataclass)) or plain_record(name, tuple(fields))._make
        return make(values)

    def decode(data: Any) -> Any:
        try:
            return msgspec.msgpack.decode(data, ext_hook=unwrap)
        except (MissingExtraError, MemoryError, Warning):
            raise
        except Exception as error:  # what torch, NumPy and Pillow say to numbers that make no sense
            raise ValueError(f"not a nested value: {error}") from None

    return decode


_pack = msgspec.msgpack.encode


def _ext(code: int, content: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _pack(content))


def _wrap(value: Any, depth: int) -> Any:
    wrap = _WRAPPERS.get(type(value))
    return wrap(value, depth) if wrap is not None else _wrap_other(value, depth)


def _same(value: Any, _: int) -> Any:
    return value


def _wrap_int(value: int, _: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return msgspec.msgpack.Ext(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _wrap_text(value: str, _: int) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return msgspec.msgpack.Ext(TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _wrap_items(values: Any, depth: int, names: Any = None) -> list[Any]:
    if depth == spec.MAX_NESTED_DEPTH:
        raise RecursionError
    out = []
    for number, value in enumerate(values):
        try:
            out.append(_wrap(value, depth + 1))
        except Refused as error:
            name = number if names is None else names[number]
            raise Refused(error.what, f"/{name}{error.path}") from None
    return out


def _wrap_tuple(value: tuple[Any, ...], depth: int) -> Any:
    return _ext(TUPLE, _wrap_items(value, depth))


def _wrap_dict(value: dict[Any, Any], depth: int) -> Any:
    pairs = _wrap_pairs(value, depth)
    if any(type(key) is msgspec.msgpack.Ext for key, _ in pairs):
        return _ext(PAIRS, pairs)
    return dict(pairs)


def _wrap_ordered(value: dict[Any, Any], depth: int) -> Any:
    return _ext(ORDERED, _wrap_pairs(value, depth))


def _wrap_pairs(value: dict[Any, Any], depth: int) -> list[tuple[Any, Any]]:
    keys = list(value)
    for key in keys:
        if not _is_plain_key(key):
            raise Refused(f"a dict with a key of type {type(key).__name__}")
    return list(zip(_wrap_items(keys, depth), _wrap_items(value.values(), depth, keys), strict=True))


def _is_plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(_is_plain_key(part) for part in key)
    return key is None or type(key) in (str, bytes, int, float, bool)


def _wrap_array(value: "np.ndarray[Any, Any]") -> Any:
    return _ext(ARRAY, ["array", value.dtype.str, list(value.shape), array_bytes(value)])


_WRAPPERS: dict[type, Callable[[Any, int], Any]] = {
    type(None): _same,
    bool: _same,
    float: _same,
    bytes: _same,
    int: _wrap_int,
    str: _wrap_text,
    list: _wrap_items,
    tuple: _wrap_tuple,
    dict: _wrap_dict,
    collections.OrderedDict: _wrap_ordered,
}


def _wrap_other(value: Any, depth: int) -> Any:
    type_ = leaf_type(value)
    if type_ == "array":
        return _wrap_array(value)
    if type_ == "scalar":
        return _ext(ARRAY, ["scalar", value.dtype.str, [], scalar_bytes(value)])
    if type_ == "tensor":
        return _wrap_tensor(value)
    if type_ == "image":
        return msgspec.msgpack.Ext(IMAGE, encode_image(value))
    kind = record_kind(type(value))
    if kind is None:
        raise Refused(describe(value))
    name, fields, is_dataclass = kind
    missing = [field for field in fields if not hasattr(value, field)]
    if missing:
        raise Refused(f"{describe(value)} whose field {missing[0]!r} was never set")
    parts = [getattr(value, field) for field in fields]
    return _ext(RECORD, [name, list(fields), is_dataclass, _wrap_items(parts, depth, fields)])


def _wrap_tensor(value: Any) -> Any:
    if not value.is_quantized:
        return _ext(ARRAY, ["tensor", dtypes.tensor_name(value.dtype), list(value.shape), tensor_bytes(value)])
    scheme = str(value.qscheme()).removeprefix("torch.")
    if scheme == "per_tensor_affine":
        scales, zeros, axis = [value.q_scale()], [value.q_zero_point()], 0
    elif scheme == "per_channel_affine":
        scales, zeros = value.q_per_channel_scales().tolist(), value.q_per_channel_zero_points().tolist()
        axis = value.q_per_channel_axis()
    else:
        raise Refused(f"a quantized tensor of scheme {scheme}")
    name = dtypes.tensor_name(value.dtype)
    content = [name, list(value.shape), tensor_bytes(value.int_repr()), scheme, scales, zeros, axis]
    return _ext(QUANTIZED, content)


def leaf_type(value: Any) -> str:
    """The column type that a value has by itself: ``int``, ``array``, ..., or ``nested`` where there is none."""
    known = _LEAF_TYPES.get(type(value))
    if known is not None:
        return known
    if isinstance(value, np.generic):
        return "scalar" if dtypes.is_storable(value.dtype) else "nested"
    if type(value) in (np.ndarray, np.memmap):
        return "array" if dtypes.is_storable(value.dtype) else "nested"
    torch = sys.modules.get("torch")
    if torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter):
        plain = value.layout == torch.strided and not value.is_nested and value.device.type != "meta"
        return "tensor" if plain and dtypes.is_tensor_dtype(value.dtype) else "nested"
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return "image"
    return "nested"


_LEAF_TYPES = {
    type(None): "none",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    bytes: "bytes",
    list: "nested",
    dict: "nested",
    tuple: "nested",
}


def describe(value: Any) -> str:
    """What a refused value is, and what would do instead."""
    cls = type(value)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(value, np.ndarray):
        subclass = "" if cls is np.ndarray else "; return np.asarray(...) instead"
        return f"an array of dtype {value.dtype} ({name}){subclass}"
    for base, advice in ((bytearray, "bytes(...)"), (dict, "dict(...)"), (set, "a sorted list")):
        if isinstance(value, base):
            return f"a value of type {name}; return {advice} instead"
    if hasattr(value, "__fspath__"):
        return f"a value of type {name}; return str(path) instead"
    if isinstance(value, (int, float, str, bytes)):
        return f"a value of type {name}, a subclass of a plain type; return the plain value instead"
    if hasattr(value, "as_subclass"):
        kind = f"layout {value.layout}, dtype {value.dtype}, device {value.device}"
        return f"a tensor of type {name}, {kind}; return a plain dense tensor"
    return f"a value of type {name}"
