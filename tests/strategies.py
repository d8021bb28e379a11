"""Values of every kind that a sample may hold."""

import collections
import dataclasses
import io
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from shardcache.format import dtypes

# Making such tensors warns, once a process.
QUIET = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental", "ignore:torch.quantize_per_tensor")

# Every dtype of a plain CPU tensor in this PyTorch that has whole bytes.
TENSOR_DTYPES = [getattr(torch, name) for name in dtypes.TENSOR_ITEM_BYTES if hasattr(torch, name)]

_NUMBERS = "|b1 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8 <f16 <c8 <c16 <c32".split()
_DATES = "<M8 <M8[D] <M8[25s] <M8[ns] <m8 <m8[W] <m8[us]".split()
_TEXTS = "<U1 <U7 |S1 |S5".split()
ARRAY_DTYPES = [
    np.dtype(name)
    for plain in _NUMBERS + _DATES + _TEXTS
    for name in (plain, plain.replace("<", ">"))
    if (name[0] != ">" or plain[0] == "<") and name not in (">M8", ">m8")  # NumPy itself does not keep these two
]

IMAGE_MODES = "1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa La I;16 I;16B I;16L".split()


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Box:
    corner: Any
    label: Any = None


ints = st.one_of(st.integers(-9, 9), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**200), 2**200))
# From bits, so that NaNs carry payloads and zeros signs.
floats = st.one_of(
    st.sampled_from([0.0, -0.0, float("inf"), float("nan")]),
    st.binary(min_size=8, max_size=8).map(lambda bits: np.frombuffer(bits, "<f8")[0].item()),
)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
# Surrogates too: file names that are not UTF-8 are such text.
any_texts = st.text(st.characters(), max_size=8)
bytestrings = st.binary(max_size=20)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def _bits(draw: Any, count: int, bits_of_bool: bool) -> bytearray:
    data = draw(st.binary(min_size=count, max_size=count))
    return bytearray(byte & 1 for byte in data) if bits_of_bool else bytearray(data)


@st.composite
def arrays(draw: Any, dtype: Any = None, shape: Any = None) -> np.ndarray:
    dtype = np.dtype(dtype) if dtype is not None else draw(st.sampled_from(ARRAY_DTYPES))
    shape = draw(shapes) if shape is None else shape
    count = int(np.prod(shape))
    if dtype.kind == "U":
        letters = st.text(st.characters(), max_size=dtype.itemsize // 4)
        return np.array([draw(letters) for _ in range(count)], dtype).reshape(shape)
    raw = _bits(draw, count * dtype.itemsize, dtype.kind == "b")
    return np.frombuffer(raw, dtype).reshape(shape) if raw else np.empty(shape, dtype)


@st.composite
def tensors(draw: Any, dtype: Any = None, shape: Any = None) -> torch.Tensor:
    dtype = draw(st.sampled_from(TENSOR_DTYPES)) if dtype is None else dtype
    shape = draw(shapes) if shape is None else shape
    count = int(np.prod(shape)) * dtypes.TENSOR_ITEM_BYTES[dtypes.tensor_name(dtype)]
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(_bits(draw, count, dtype == torch.bool), dtype=dtype).reshape(shape)


@st.composite
def scalars(draw: Any) -> np.generic:
    kind = draw(st.sampled_from("nUS"))
    if kind == "U":
        return np.str_(draw(any_texts))
    if kind == "S":
        return np.bytes_(draw(bytestrings))
    dtype = draw(st.sampled_from([dtype for dtype in ARRAY_DTYPES if dtype.kind not in "US" and dtype.str[0] != ">"]))
    return draw(arrays(dtype, (1,)))[0]


@st.composite
def images(draw: Any) -> Image.Image:
    mode = draw(st.sampled_from(IMAGE_MODES))
    size = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    image = Image.new(mode, size)
    count = len(image.tobytes()) if all(size) else 0
    if count:
        image = Image.frombytes(mode, size, draw(st.binary(min_size=count, max_size=count)))
    if mode in ("P", "PA") and draw(st.booleans()):
        colours = draw(st.integers(1, 256))
        palette = draw(st.sampled_from(["RGB", "RGBA"]))
        image.putpalette(np.random.default_rng(colours).bytes(colours * len(palette)), palette)
    if draw(st.booleans()):
        image.info["transparency"] = draw(st.one_of(st.integers(0, 255), st.binary(max_size=9), st.just((1, 2, 3))))
    return image


def saved_image(kind: str, **options: Any) -> Image.Image:
    """An image as it comes from a file: opened, and not read yet."""
    pixels = np.random.default_rng(3).integers(0, 255, (13, 11, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA" if kind == "rgba.png" else None)
    if kind.startswith("p."):
        image = image.convert("RGB").quantize(17)
    elif kind != "rgba.png":
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, kind.partition(".")[2], **options)
    return Image.open(file)


plain_leaves = st.one_of(st.none(), ints, floats, st.booleans(), any_texts, bytestrings)
leaves = st.one_of(plain_leaves, arrays(), tensors(), scalars(), images())

keys = st.recursive(
    st.one_of(st.none(), ints, floats, st.booleans(), any_texts, bytestrings),
    lambda parts: st.lists(parts, max_size=3).map(tuple),
    max_leaves=4,
)


def nested(of: Any = leaves) -> Any:
    """Whatever JSON could say, and then tuples, OrderedDicts, keys of all kinds, arrays, images."""
    return st.recursive(
        of,
        lambda parts: st.one_of(
            st.lists(parts, max_size=4),
            st.lists(parts, max_size=4).map(tuple),
            st.dictionaries(keys, parts, max_size=4),
            st.dictionaries(st.text("abc/~", max_size=3), parts, max_size=4),
            st.lists(st.tuples(keys, parts), max_size=4).map(collections.OrderedDict),
        ),
        max_leaves=12,
    )


def with_holes(values: Any, hole: Any) -> Any:
    """Rows of which some have no value."""
    return st.lists(st.one_of(values, values, st.just(hole)), min_size=1, max_size=12)
