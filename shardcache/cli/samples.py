"""A sample as text, or as JSON: what a person needs to recognise it, not all of its numbers."""

import base64
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from shardcache.format import nested
from shardcache.wording import plain, size

_FIRST = 6  # numbers of an array
_ITEMS = 10  # of a list
_CHARACTERS = 72
_BYTES = 24
_DEPTH = 6
_JSON_BYTES = 64
_INT_BITS = 256
_PLAIN = (bool, int, float, str, type(None))

Numbers = np.ndarray[Any, np.dtype[Any]]


def lines(sample: Any) -> Iterator[str]:
    """A sample, one line a leaf, indented as it nests."""
    yield from _lines("", sample, "  ", 0)


def _lines(name: str, value: Any, indent: str, width: int) -> Iterator[str]:
    head = indent + (f"{name + ':':<{width + 1}} " if name else "")
    short = _short(value)
    if short is not None:
        yield head + short
        return
    kind, parts = _parts(value)
    if name:
        yield head + kind
        indent += "  "
    if len(indent) > 2 * _DEPTH:
        yield indent + "..."
        return
    shown = parts[:_ITEMS] if kind.startswith("list") else parts
    width = max((len(plain(key)) for key, _ in shown), default=0)
    for key, part in shown:
        yield from _lines(plain(key), part, indent, width)
    if len(shown) < len(parts):
        yield f"{indent}... and {len(parts) - len(shown):,} more"


def _parts(value: Any) -> tuple[str, list[tuple[str, Any]]]:
    """What a container is, and its parts by name."""
    if isinstance(value, dict):
        return f"dict of {len(value)}", [(str(key), part) for key, part in value.items()]
    names = getattr(value, "_fields", None)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    if names is not None:
        return type(value).__name__, [(name, getattr(value, name)) for name in names]
    return f"{type(value).__name__} of {len(value)}", [(str(k), part) for k, part in enumerate(value)]


def _short(value: Any) -> str | None:
    """A value in one line; None for a container that has no room in one."""
    kind = nested.leaf_type(value)
    if kind in ("array", "scalar", "tensor"):
        return _array_text(kind, value)
    if kind == "image":
        return f"image {value.mode} {value.width}x{value.height}"
    if isinstance(value, str):
        cut = f"... ({len(value):,} characters)" if len(value) > _CHARACTERS else ""
        return plain(repr(value[:_CHARACTERS])) + cut
    if isinstance(value, bytes):
        cut = f"... ({size(len(value))})" if len(value) > _BYTES else ""
        return repr(value[:_BYTES]) + cut
    if isinstance(value, int) and not _is_printable(value):
        return f"an int of {value.bit_length():,} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if type(value) in (list, tuple, dict) and not value:
        return repr(value)
    if _is_flat(value) and len(text := plain(repr(value))) <= _CHARACTERS:
        return text
    if type(value) in (list, tuple) and len(value) > _ITEMS and all(_is_flat([part]) for part in value[:_FIRST]):
        first = plain(", ".join(map(repr, value[:_FIRST])))
        return f"{_parts(value)[0]}  {first}, ..." if len(first) <= _CHARACTERS else None
    return None


def _is_printable(value: Any) -> bool:
    """Python refuses to write very long integers."""
    return not isinstance(value, int) or value.bit_length() <= _INT_BITS


def _is_flat(value: Any) -> bool:
    """Whether a container holds plain values and not many, so that its repr says it best."""
    if type(value) not in (list, tuple, dict) or len(value) > _CHARACTERS:
        return False
    parts = value.values() if isinstance(value, dict) else value
    return all((type(part) in _PLAIN and _is_printable(part)) or _is_flat(part) for part in parts)


def _array_text(kind: str, value: Any) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    text = f"{kind} {dtype}" + ("" if kind == "scalar" else f" [{', '.join(map(str, value.shape))}]")
    numbers = _numbers(kind, value)
    if numbers is None or not numbers.size:
        return text
    for name, number in _statistics(numbers).items() if numbers.size > 1 else ():
        text += f"  {name.replace('_', ' ')} {_number_text(number)}"
    first = ", ".join(_number_text(number) for number in numbers.reshape(-1)[:_FIRST].tolist())
    return f"{text}  {first}{', ...' if numbers.size > _FIRST else ''}"


def _number_text(number: Any) -> str:
    return (
        f"{number:.4g}"
        if isinstance(number, float)
        else plain(repr(number))
        if isinstance(number, str)
        else str(number)
    )


def _numbers(kind: str, value: Any) -> Numbers | None:
    """The values in a type that NumPy reckons with; None where there is none."""
    if kind != "tensor":
        return np.asarray(value)
    try:
        if value.is_quantized:
            value = value.dequantize()
        if value.dtype.is_floating_point:
            value = value.double()
        elif value.dtype.is_complex:
            value = value.cdouble()
        numbers: Numbers = value.numpy()
    except (RuntimeError, TypeError):  # PyTorch converts nothing from its narrowest types
        return None
    return numbers


def _statistics(numbers: Numbers) -> dict[str, Any]:
    if numbers.dtype.kind == "b":
        return {"true": int(numbers.sum())}
    if numbers.dtype.kind not in "iuf":
        return {}
    finite = numbers[np.isfinite(numbers)]
    found: dict[str, Any] = {}
    if finite.size:
        found = {"min": finite.min().item(), "max": finite.max().item(), "mean": float(finite.mean(dtype=np.float64))}
    if finite.size < numbers.size:
        found["not_finite"] = numbers.size - finite.size
    return found


def as_json(value: Any) -> Any:
    """A value for ``json``: plain ones as they are, arrays, images and bytes as objects that have a ``type``."""
    kind = nested.leaf_type(value)
    if kind in ("array", "scalar", "tensor"):
        return _array_json(kind, value)
    if kind == "image":
        return {"type": "image", "mode": value.mode, "size": [value.width, value.height]}
    if isinstance(value, bytes):
        start = base64.b64encode(value[:_JSON_BYTES]).decode()
        return {"type": "bytes", "length": len(value), "base64": start, "whole": len(value) <= _JSON_BYTES}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not _is_printable(value):
        return hex(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) in (list, tuple):
        return [as_json(part) for part in value]
    return {name: as_json(part) for name, part in _parts(value)[1]}


def _array_json(kind: str, value: Any) -> dict[str, Any]:
    numbers = _numbers(kind, value)
    first = [] if numbers is None else numbers.reshape(-1)[:_FIRST].tolist()
    plain_numbers = [as_json(one) if isinstance(one, (bool, int, float, str)) else str(one) for one in first]
    statistics = {} if numbers is None else _statistics(numbers)
    dtype = str(value.dtype).removeprefix("torch.")
    return {"type": kind, "dtype": dtype, "shape": list(value.shape), **statistics, "first": plain_numbers}
