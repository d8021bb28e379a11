"""Names of element types on disk, and what they are in NumPy and PyTorch.

Arrays carry NumPy's ``dtype.str`` (byte order included), tensors PyTorch's name. A name from a file is looked up in a
table here and nowhere else: nothing is imported or built from it.
"""

import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

TENSOR_ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "complex32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
QUANTIZED_ITEM_BYTES = {"quint8": 1, "qint8": 1, "qint32": 4}

_ARRAY_KINDS = re.compile(
    r"\|b1|\|[iu]1|[<>][iufc](?:2|4|8|16|32)|[<>]U\d{1,9}|\|S\d{1,9}|[<>][mM]8(?:\[\d{0,9}[a-zA-Zμ]{1,7}\])?"
)

# NumPy types that a tensor can hold, once in native byte order.
_ARRAY_TO_TENSOR = {
    "b1": "bool",
    "u1": "uint8",
    "i1": "int8",
    "u2": "uint16",
    "i2": "int16",
    "f2": "float16",
    "u4": "uint32",
    "i4": "int32",
    "f4": "float32",
    "u8": "uint64",
    "i8": "int64",
    "f8": "float64",
    "c8": "complex64",
    "c16": "complex128",
}


def array_dtype(name: str) -> np.dtype[Any]:
    """A NumPy dtype from its name in a file; ValueError where the format has no such type."""
    if not _ARRAY_KINDS.fullmatch(name):
        raise ValueError(f"{name!r} is not an element type of the format")
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise ValueError(f"{name!r} is not an element type on this platform") from None
    if dtype.str != name:
        raise ValueError(f"{name!r} is not an element type on this platform")
    return dtype


def is_storable(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this dtype have a place in the format (objects, structures and references have none)."""
    return bool(_ARRAY_KINDS.fullmatch(dtype.str)) and not dtype.hasobject and dtype.fields is None


def tensor_name(dtype: "torch.dtype") -> str:
    """PyTorch's name of a dtype, e.g. ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=1024)
def is_tensor_dtype(dtype: "torch.dtype") -> bool:
    """Whether tensors of this dtype have a place in the format (those without a byte an item have none)."""
    name = tensor_name(dtype)
    return name in TENSOR_ITEM_BYTES or name in QUANTIZED_ITEM_BYTES


def tensor_dtype(name: str) -> "torch.dtype":
    """A torch dtype from its name in a file; ValueError where this PyTorch has no such type."""
    import torch

    if name not in TENSOR_ITEM_BYTES and name not in QUANTIZED_ITEM_BYTES:
        raise ValueError(f"{name!r} is not an element type of the format")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"this version of PyTorch ({torch.__version__}) has no dtype {name!r}")
    return dtype


def tensor_name_of_array(name: str) -> str | None:
    """The tensor dtype that holds values of an array dtype, or None (text, dates and long doubles have none)."""
    return _ARRAY_TO_TENSOR.get(name[1:])


@lru_cache(maxsize=1024)
def array_dtype_of_tensor(name: str) -> np.dtype[Any] | None:
    """The NumPy dtype of a tensor dtype, or None (bfloat16 and others have none)."""
    return next((np.dtype(f"<{array}") for array, tensor in _ARRAY_TO_TENSOR.items() if tensor == name), None)


def item_bytes(type_: str, name: str) -> int:
    """Bytes of one item; ValueError where the name is not one of the format."""
    if type_ == "tensor":
        if name not in TENSOR_ITEM_BYTES:
            raise ValueError(f"{name!r} is not an element type of the format")
        return TENSOR_ITEM_BYTES[name]
    return array_dtype(name).itemsize


def is_swapped(name: str) -> bool:
    """Whether an array dtype has the other byte order than this machine."""
    return name[0] == (">" if sys.byteorder == "little" else "<")
