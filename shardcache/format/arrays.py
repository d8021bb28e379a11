"""Arrays, NumPy scalars and tensors <-> their items in C order."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from shardcache.format import dtypes


def array_bytes(value: "np.ndarray[Any, Any]") -> bytes:
    """The items of an array in C order, the padding of long doubles cleared so that equal values give equal bytes."""
    if value.dtype.kind in "fc" and value.dtype.char in "gG" and np.finfo(value.dtype).nmant == 63:
        raw = np.array(value, order="C").reshape(-1).view(np.uint8).reshape(-1, np.dtype(np.longdouble).itemsize)
        raw[:, slice(0, -10) if dtypes.is_swapped(value.dtype.str) else slice(10, None)] = 0
        return raw.tobytes()
    return value.tobytes()


def arrays_bytes(values: "Sequence[np.ndarray[Any, Any]]") -> bytes:
    """The items of arrays of one dtype, one array after the other."""
    if values[0].dtype.char not in "gG":
        with suppress(TypeError, ValueError):  # items that are not in C order, or dates
            buffers: Sequence[Any] = values
            return b"".join(buffers)
    return b"".join(map(array_bytes, values))


def scalar_bytes(value: "np.generic") -> bytes:
    """The bytes of a NumPy scalar; NumPy itself gives empty text one character."""
    return array_bytes(np.asarray(value)) if value.dtype.itemsize else b""


def tensor_bytes(value: Any) -> bytes:
    """The items of a tensor in C order."""
    import torch

    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if not plain.numel():
        return b""
    flat = plain.reshape(-1).as_strided((plain.numel(),), (1,))  # one item is contiguous whatever its stride
    raw: bytes = flat.view(torch.uint8).numpy().tobytes()
    return raw


def tensors_bytes(values: Sequence[Any]) -> bytes:
    """The items of tensors of one dtype and shape, one after the other."""
    import torch

    if len({value.device for value in values}) > 1:
        return b"".join(map(tensor_bytes, values))
    with torch.no_grad():
        return tensor_bytes(torch.stack(list(values)))


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
    if type_ == "scalar" and not shape:
        return _decode_scalar(dtype_, data)
    if type_ != "array":
        raise ValueError(f"{type_!r} of shape {shape!r} is not of the format")
    if not len(data):
        return np.ndarray(tuple(shape), dtype_)
    return np.frombuffer(bytearray(data), dtype_).reshape(tuple(shape))


def tensor_taker(
    name: str, shape: tuple[int, ...], data: "np.ndarray[Any, np.dtype[np.uint8]]", size: int
) -> Callable[[int], Any]:
    """A function from a place among the tensors of ``size`` bytes in ``data`` to one that owns its memory.

    NumPy copies small rows faster than PyTorch, if it knows their dtype.
    """
    import torch

    dtype = dtypes.array_dtype_of_tensor(name)
    if dtype is not None:
        arrays = np.frombuffer(data, dtype).reshape(-1, *shape)
        return lambda place: torch.from_numpy(arrays[place, ...].copy())
    rows, torch_dtype = data.reshape(-1, size), dtypes.tensor_dtype(name)
    return lambda place: torch.from_numpy(rows[place].copy()).view(torch_dtype).view(shape)


def _decode_scalar(dtype: "np.dtype[Any]", data: Any) -> Any:
    """NumPy would take the zeros at the end of text for padding."""
    if dtype.kind == "S":
        return np.bytes_(bytes(data))
    if dtype.kind == "U":
        return np.str_(str(data, "utf-32-be" if dtype.str[0] == ">" else "utf-32-le", "surrogatepass"))
    return np.frombuffer(bytearray(data), dtype)[0]


def decode_quantized(
    name: str, shape: list[int], data: bytes, scheme: str, scales: list[float], zeros: list[int], axis: int
) -> Any:
    """A quantized tensor from its integers and how they are scaled."""
    import torch

    stored = {"quint8": "uint8", "qint8": "int8", "qint32": "int32"}.get(name)
    if stored is None:
        raise ValueError(f"{name!r} is not a quantized type of the format")
    numbers = decode_array("tensor", stored, shape, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch 2.13 on: these dtypes will be removed
        if scheme == "per_tensor_affine":
            return torch._make_per_tensor_quantized_tensor(numbers, scales[0], zeros[0])
        if scheme != "per_channel_affine" or not 0 <= axis < len(shape) or not len(scales) == len(zeros) == shape[axis]:
            raise ValueError(f"{scheme!r} with {len(scales)} scales is not of the format")
        return torch._make_per_channel_quantized_tensor(
            numbers, torch.tensor(scales, dtype=torch.float64), torch.tensor(zeros, dtype=torch.int64), axis
        )
