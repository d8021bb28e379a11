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
from shardcache.format import dtypes
from shardcache.format.schema import plain_record, record_kind, record_maker

TUPLE, BIG_INT, ARRAY, IMAGE, TEXT, RECORD, ORDERED, QUANTIZED = range(1, 9)


class Refused(Exception):
    """A value that has no place in the format: ``path`` below the column, and what it is."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what, self.path = what, path


def encode(value: Any) -> bytes:
    """One value as MessagePack; :class:`Refused` where the format has no place for it."""
    try:
        return _pack(_wrap(value))
    except RecursionError:
        raise Refused("a value that is nested too deeply, or contains itself") from None


Decoder = Callable[[Any], Any]


def decoder(types: Sequence[type] = ()) -> Decoder:
    """A function from the bytes of one value to the value; it raises ValueError where they are not one.

    Records come back as the class in ``types`` that has their name and fields, else as namedtuples.
    """
    records = {record_kind(cls): record_maker(cls) for cls in types}

    def unwrap(code: int, data: memoryview) -> Any:
        if code == BIG_INT:
            return int.from_bytes(data, "little", signed=True)
        if code == TEXT:
            return bytes(data).decode("utf-8", "surrogatepass")
        if code == IMAGE:
            return decode_image(data)
        if code not in (TUPLE, ARRAY, RECORD, ORDERED, QUANTIZED):
            raise ValueError(f"extension {code} is not one of the format")
        content = msgspec.msgpack.decode(data, type=list, ext_hook=unwrap)
        if code == TUPLE:
            return tuple(content)
        if code == ORDERED:
            return collections.OrderedDict((key, value) for key, value in content)
        if code == ARRAY:
            return decode_array(*content)
        if code == QUANTIZED:
            return _decode_quantized(*content)
        return unwrap_record(*content)

    def unwrap_record(name: str, fields: list[str], is_dataclass: bool, values: list[Any]) -> Any:
        if not (str(name).isidentifier() and all(isinstance(field, str) for field in fields)):
            raise ValueError("a record without a name")
        make = records.get((name, tuple(fields), is_dataclass)) or plain_record(name, tuple(fields))._make
        return make(values)

    def decode(data: Any) -> Any:
        try:
            return msgspec.msgpack.decode(data, ext_hook=unwrap)
        except (msgspec.DecodeError, RecursionError, TypeError, OverflowError) as error:
            raise ValueError(f"not a nested value: {error}") from None

    return decode


_pack = msgspec.msgpack.encode


def _ext(code: int, content: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _pack(content))


def _wrap(value: Any) -> Any:
    wrap = _WRAPPERS.get(type(value))
    return wrap(value) if wrap is not None else _wrap_other(value)


def _same(value: Any) -> Any:
    return value


def _wrap_int(value: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return msgspec.msgpack.Ext(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _wrap_text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return msgspec.msgpack.Ext(TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _wrap_items(values: Any, names: Any = None) -> list[Any]:
    out = []
    for number, value in enumerate(values):
        try:
            out.append(_wrap(value))
        except Refused as error:
            name = number if names is None else names[number]
            raise Refused(error.what, f"/{name}{error.path}") from None
    return out


def _wrap_dict(value: dict[Any, Any]) -> Any:
    keys = list(value)
    for key in keys:
        if not _is_plain_key(key):
            raise Refused(f"a dict with a key of type {type(key).__name__}")
    return dict(zip(_wrap_items(keys), _wrap_items(value.values(), keys), strict=True))


def _is_plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(_is_plain_key(part) for part in key)
    return key is None or type(key) in (str, bytes, int, float, bool)


def _wrap_ordered(value: Any) -> Any:
    return _ext(ORDERED, [list(pair) for pair in _wrap_dict(dict(value)).items()])


def _wrap_array(value: "np.ndarray[Any, Any]") -> Any:
    return _ext(ARRAY, ["array", value.dtype.str, list(value.shape), array_bytes(value)])


_WRAPPERS: dict[type, Callable[[Any], Any]] = {
    type(None): _same,
    bool: _same,
    float: _same,
    bytes: _same,
    int: _wrap_int,
    str: _wrap_text,
    list: _wrap_items,
    dict: _wrap_dict,
    tuple: lambda value: _ext(TUPLE, _wrap_items(value)),
    collections.OrderedDict: _wrap_ordered,
}


def _wrap_other(value: Any) -> Any:
    type_ = leaf_type(value)
    if type_ == "array":
        return _wrap_array(value)
    if type_ == "scalar":
        return _ext(ARRAY, ["scalar", value.dtype.str, [], array_bytes(np.asarray(value))])
    if type_ == "tensor":
        return _wrap_tensor(value)
    if type_ == "image":
        return msgspec.msgpack.Ext(IMAGE, encode_image(value))
    kind = record_kind(type(value))
    if kind is None:
        raise Refused(describe(value))
    name, fields, is_dataclass = kind
    parts = [getattr(value, field) for field in fields]
    return _ext(RECORD, [name, list(fields), is_dataclass, _wrap_items(parts, fields)])


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


def _decode_quantized(
    name: str, shape: list[int], data: bytes, scheme: str, scales: list[float], zeros: list[int], axis: int
) -> Any:
    import torch

    stored = {"quint8": "uint8", "qint8": "int8", "qint32": "int32"}.get(name)
    if stored is None:
        raise ValueError(f"{name!r} is not a quantized type of the format")
    numbers = decode_array("tensor", stored, shape, data)
    if scheme == "per_tensor_affine":
        return torch._make_per_tensor_quantized_tensor(numbers, scales[0], zeros[0])
    return torch._make_per_channel_quantized_tensor(
        numbers, torch.tensor(scales, dtype=torch.float64), torch.tensor(zeros, dtype=torch.int64), axis
    )


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
        return "tensor" if value.layout == torch.strided and value.device.type != "meta" else "nested"
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
        return f"an array of dtype {value.dtype} ({name})"
    for base, advice in ((bytearray, "bytes(...)"), (dict, "dict(...)"), (set, "a sorted list")):
        if isinstance(value, base):
            return f"a value of type {name}; return {advice} instead"
    if hasattr(value, "__fspath__"):
        return f"a value of type {name}; return str(path) instead"
    if isinstance(value, (int, float, str, bytes)):
        return f"a value of type {name}, a subclass of a plain type; return the plain value instead"
    if hasattr(value, "as_subclass"):
        return f"a tensor of type {name}, layout {value.layout}, device {value.device}; return a plain dense tensor"
    return f"a value of type {name}"


def array_bytes(value: "np.ndarray[Any, Any]") -> bytes:
    """The items of an array in C order, the padding of long doubles cleared so that equal values give equal bytes."""
    if value.dtype.kind in "fc" and value.dtype.char in "gG" and np.finfo(value.dtype).nmant == 63:
        raw = np.array(value, order="C").reshape(-1).view(np.uint8).reshape(-1, np.dtype(np.longdouble).itemsize)
        raw[:, 10:] = 0
        return raw.tobytes()
    return value.tobytes()


def tensor_bytes(value: Any) -> bytes:
    """The items of a tensor in C order."""
    import torch

    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if not plain.numel():
        return b""
    raw: bytes = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return raw


def decode_array(type_: str, name: str, shape: list[int] | tuple[int, ...], data: Any) -> Any:
    """A scalar, array or tensor that owns its memory; ValueError where bytes and shape do not fit."""
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{shape!r} is not a shape")
        count *= size
    if count * dtypes.item_bytes(type_, name) != len(data):
        raise ValueError(
            f"shape {tuple(shape)} of {name} needs {count * dtypes.item_bytes(type_, name)} bytes, got {len(data)}"
        )
    if type_ == "tensor":
        import torch

        dtype = dtypes.tensor_dtype(name)
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tuple(shape))
    dtype_ = dtypes.array_dtype(name)
    array = np.frombuffer(bytearray(data), dtype_) if len(data) else np.empty(count, dtype_)
    if type_ == "scalar":
        return array[0]
    if type_ != "array":
        raise ValueError(f"{type_!r} is not a type of arrays")
    return array.reshape(tuple(shape))


def encode_image(image: Any) -> bytes:
    """A Pillow image as MessagePack: its mode, size, pixels, palette and transparency."""
    palette = None
    if image.mode in ("P", "PA"):
        mode = image.palette.mode if image.palette is not None else "RGB"
        palette = [mode, bytes(image.getpalette(mode) or [])]
    transparency = image.info.get("transparency")
    if not isinstance(transparency, (int, bytes, tuple, type(None))):
        transparency = None
    return _pack([image.mode, image.width, image.height, image.tobytes(), palette, transparency])


def decode_image(data: Any) -> Any:
    """The Pillow image; :class:`MissingExtraError` without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("this cache holds images: pip install 'shardcache[images]'") from None
    mode, width, height, pixels, palette, transparency = msgspec.msgpack.decode(data, type=list)
    image = Image.frombytes(mode, (width, height), pixels) if pixels else Image.new(mode, (width, height))
    if palette is not None:
        image.putpalette(palette[1], palette[0])
    if transparency is not None:
        image.info["transparency"] = tuple(transparency) if isinstance(transparency, list) else transparency
    return image
