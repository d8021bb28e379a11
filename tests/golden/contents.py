"""What the golden caches hold. Frozen: only ever add to it, since the caches of every format version stay for good.

Nothing here depends on a random generator of some library, which might change.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True)
class Box:
    corner: Any
    label: Any = None


def bits(name: str, count: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(count)


def array(dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    if kind.kind == "U":
        return np.array([chr(0x41 + byte) * (byte % 4) for byte in bits(name, count)], kind).reshape(shape)
    raw = bits(dtype + name, count * kind.itemsize)
    if kind.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(bytearray(raw), kind).reshape(shape) if count else np.empty(shape, kind)


def tensor(dtype: str, shape: tuple[int, ...], name: str) -> torch.Tensor:
    kind = getattr(torch, dtype)
    count = int(np.prod(shape)) * kind.itemsize
    raw = bits(dtype + name, count)
    if kind == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    return torch.frombuffer(bytearray(raw), dtype=kind).reshape(shape) if count else torch.empty(shape, dtype=kind)


NUMBERS = "|b1 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8 <c8 <c16 >i2 >u4 >i8 >f4 >f8 >c16".split()
DATES = "<M8[D] <M8[ns] <m8[25s] >M8[us]".split()
TENSORS = (
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 "
    "complex32 complex64 complex128 float8_e4m3fn float8_e5m2"
).split()
NEW_TENSORS = "float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2".split()
MODES = "1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa La I;16 I;16B".split()


def plain(i: int) -> Any:
    return {
        "int": i * 10**15 - 7,
        "float": float(np.frombuffer(bits(f"f{i}", 8), "<f8")[0]),
        "bool": i % 3 == 0,
        "str": "grüße \U0001f600 " * (i % 4),
        "bytes": bits(f"b{i}", i % 9),
        "optional": None if i % 4 == 1 else i,
        "never": None,
        "big": 3**i * (-1) ** i,
        **({"rare": f"only {i}"} if i % 5 == 0 else {}),
    }


def arrays(i: int) -> Any:
    fixed = {dtype: array(dtype, (2,), str(i)) for dtype in NUMBERS + DATES}
    ragged = {f"{dtype}, ragged": array(dtype, (i % 3, 2), str(i)) for dtype in ("<f4", ">i2", "|u1", "|b1")}
    text = {
        "text": array("<U4", (3,), str(i)),
        "swapped text": array(">U4", (1,), str(i)),
        "bytes": array("|S5", (2,), "s"),
    }
    scalars = {dtype: array(dtype, (1,), str(i))[0] for dtype in NUMBERS[:14] + DATES[:3]}
    scalars |= {"text": np.str_("ab\0"), "bytes": np.bytes_(b"c\0"), "empty": np.str_("")}
    return {"fixed": fixed, "ragged": ragged, "text": text, "0-d": np.array(i), "scalars": scalars}


def tensors(i: int) -> Any:
    return (
        {dtype: tensor(dtype, (2,), str(i)) for dtype in TENSORS},
        {dtype: tensor(dtype, (i % 3, 2), str(i)) for dtype in ("float32", "bfloat16", "uint16")},
        torch.tensor(float(i)),
        [tensor("int16", (i % 4,), str(i)), None if i % 2 else tensor("float64", (), "x")] * (i % 3),
    )


def structures(i: int) -> Any:
    return {
        "tuple": (i, (i, [i, i])),
        "ordered": collections.OrderedDict(b=i, a=i),
        "point": Point(i, Box((i, i), "label")),
        "boxes": [Box(Point(0, i), None)] * (i % 3),
        "keys": {(1, None): i, 2**70: i, 1.5: i, b"k": i, "\udc80": "\udc80"},
        "annotations": [{"bbox": (0.5, 1.0), "size": [i, i], "crowd": k % 2 == 0} for k in range(i % 4)],
        "empties": ((), [], {}, "", b"", collections.OrderedDict()),
        "ints": [2**63, 2**64, -(2**63) - 1, 2**200, -1],
        "surprise": i if i < 15 else {"now": ["something", ("else", None)]},
        7: True,
        "a/b~c": None if i % 2 else {"x": i},
    }


def changing(i: int) -> Any:
    """Fixed, then ragged, then nested, within one column."""
    shapes = np.full(3, i), np.full(i % 5, i), np.full((1, 2), i), torch.full((3,), i), None, "text"
    return {"a": shapes[i // 20], "number": i if i < 70 else 2**64 + i, "text": "x" * i if i < 100 else b"y"}


def large(i: int) -> Any:
    return {"data": bytes(9 << 20) if i == 3 else bits(f"l{i}", 20), "plain": ["z" * (9 << 20)] if i == 4 else [i]}


def images(i: int) -> Any:
    mode = MODES[i % len(MODES)]
    blank = Image.new(mode, (5, 4))
    image = Image.frombytes(mode, blank.size, bits(mode, len(blank.tobytes())))
    if mode in ("P", "PA"):
        image.putpalette(bits("palette", 3 * 40 if i < 18 else 4 * 40), "RGB" if i < 18 else "RGBA")
        image.info["transparency"] = 3 if i < 18 else bits("transparency", 16)
    if mode == "RGB":
        image.info["transparency"] = (1, 2, 3)
    return image, None if i % 3 else Image.new("L", (i, 0))


SKIPPING = {"on_error": "skip", "max_errors": 40, "layout": "window", "shuffle_window": 5, "block_bytes": 90}

# name: (how many samples, sample of an index, options of the build)
CONTENTS: dict[str, tuple[int, Callable[[int], Any], dict[str, Any]]] = {
    "plain": (90, plain, {"seed": 11, "block_bytes": 700}),
    "arrays": (12, arrays, {"codec": "zstd:19"}),
    "tensors": (12, tensors, {"layout": "source", "codec": "zstd:-1"}),
    "new_tensors": (6, lambda i: {name: tensor(name, (4,), str(i)) for name in NEW_TENSORS}, {}),
    "long_doubles": (6, lambda i: (np.full(3, i, "<f16") / 3, np.full(1, i, ">f16"), np.clongdouble(i + 1j)), {}),
    "structures": (20, structures, {"block_bytes": 3000, "codec": "zstd:19"}),
    "changing": (120, changing, {"layout": "source", "block_bytes": 200}),
    "large": (8, large, {"layout": "source", "codec": "zstd:19", "block_bytes": 1 << 30}),
    "images": (36, images, {"layout": "source"}),
    "quantized": (4, lambda i: quantized(i), {}),
    "skipping": (90, lambda i: set() if i % 7 == 3 or 40 <= i < 60 else (i, "text" * (i % 3)), SKIPPING),
    "root": (20, lambda i: i * 3, {"codec": "none"}),
    "packed": (14, lambda i: packed(i), {"codec": "lzma", "block_bytes": 8000}),
}


def packed(i: int) -> Any:
    """Pixels that change little from one to the next, text, and noise that is stored as it is."""
    steps = np.frombuffer(bits(f"steps {i}", 16 * 16 * 3), np.uint8).reshape(-1, 3) % 5
    pixels = np.cumsum(steps, axis=0, dtype=np.uint8).reshape(16, 16, 3)
    return {"pixels": pixels, "text": f"row {i} of text; " * 20, "noise": bits(f"noise {i}", 40)}


def quantized(i: int) -> Any:
    numbers = torch.tensor([[-1.0, 0.5], [0.0, i]])
    scales, zeros = torch.tensor([0.1, 0.25], dtype=torch.float64), torch.tensor([1, 2])
    whole = torch.quantize_per_tensor(numbers, 0.1, 3, (torch.quint8, torch.qint8, torch.qint32)[i % 3])
    return whole, torch.quantize_per_channel(numbers, scales, zeros, 1, torch.qint8)


def samples(name: str) -> list[Any]:
    count, make, _ = CONTENTS[name]
    return [make(index) for index in range(count)]


def kept(name: str) -> list[Any]:
    """The samples that are in the cache: all but the sets, which cannot be stored."""
    return [sample for sample in samples(name) if not isinstance(sample, set)]
