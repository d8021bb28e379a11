"""What a value is to the last bit, as something that ``==`` compares: types, dtypes, shapes, bytes, order."""

import collections
import dataclasses
import struct
from typing import Any

import numpy as np
import torch
from PIL import Image


def exact(value: Any, *, classes: bool = True) -> Any:
    """``classes=False`` takes a dataclass and a namedtuple of the same name and fields for the same."""
    if value is None or type(value) in (bool, int, str, bytes):
        return type(value), value
    if type(value) is float:
        return float, struct.pack("<d", value)
    if isinstance(value, np.generic):
        return type(value), value.dtype.str, str(value) if value.dtype.kind == "U" else _bits(np.asarray(value))
    if isinstance(value, np.ndarray):
        return np.ndarray, value.dtype.str, value.shape, _bits(value)
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, Image.Image):
        return _image(value)
    return _whole(value, classes)


def _whole(value: Any, classes: bool) -> Any:
    if type(value) is dict:
        return dict, {(type(key), _key(key)): exact(part, classes=classes) for key, part in value.items()}
    if type(value) is collections.OrderedDict:
        return value.__class__, [(type(key), _key(key), exact(part, classes=classes)) for key, part in value.items()]
    if dataclasses.is_dataclass(value):
        names = tuple(field.name for field in dataclasses.fields(value))
        parts = [getattr(value, name) for name in names]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        names, parts = value._fields, value
    else:
        assert type(value) in (tuple, list), type(value)
        return type(value), [exact(part, classes=classes) for part in value]
    kind = type(value) if classes else type(value).__name__
    return kind, names, [exact(part, classes=classes) for part in parts]


def _key(key: Any) -> Any:
    if type(key) is tuple:
        return tuple((type(part), _key(part)) for part in key)
    return struct.pack("<d", key) if type(key) is float else key


def _bits(array: np.ndarray) -> bytes:
    """The padding of long doubles is not part of the number."""
    if array.dtype.char not in "gG":
        return array.tobytes()
    raw = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, 16)
    return raw[:, -10:].tobytes() if array.dtype.str[0] == ">" else raw[:, :10].tobytes()


def _tensor(value: torch.Tensor) -> Any:
    if value.is_quantized:
        how: list[Any] = [str(value.qscheme())]
        if "channel" in how[0]:
            how += [value.q_per_channel_scales().tolist(), value.q_per_channel_zero_points().tolist()]
            how += [value.q_per_channel_axis()]
        else:
            how += [value.q_scale(), value.q_zero_point()]
        return torch.Tensor, value.dtype, tuple(value.shape), value.int_repr().numpy().tobytes(), how
    plain = value.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
    data = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return torch.Tensor, value.dtype, tuple(value.shape), data


def _image(value: Image.Image) -> Any:
    value.load()
    palette = None
    if value.mode in ("P", "PA"):
        palette = value.palette.mode, value.getpalette(), value.getpalette("RGBA")
    return "image", value.mode, value.size, value.tobytes(), palette, value.info.get("transparency")
