"""Plain values <-> MessagePack: everything comes back as it was, and what is not ours is an error."""

import collections
import contextlib
import dataclasses
import random
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardcache.format import nested, spec
from shardcache.format.nested import Refused, decoder, encode
from tests import strategies
from tests.exact import exact

pytestmark = strategies.QUIET
decode = decoder()


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    corner: Any
    label: Any = None

    def __post_init__(self) -> None:
        if self.label == "never again":
            raise AssertionError("__post_init__ ran")


@dataclasses.dataclass
class Late:
    value: Any
    computed: Any = dataclasses.field(init=False)


@given(strategies.nested())
def test_every_value_comes_back_as_it_was(value):
    assert exact(decode(encode(value))) == exact(value)


@given(strategies.arrays() | strategies.scalars() | strategies.tensors())
def test_arrays_own_their_memory(value):
    got = decode(encode(value))
    if isinstance(got, np.ndarray):
        assert got.flags.writeable
    if isinstance(got, torch.Tensor) and got.numel():
        got.reshape(-1).view(torch.uint8)[0] = 1


@pytest.mark.parametrize(
    "number", [0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, -(2**64), 2**4000, -(2**4000)]
)
def test_an_int_of_any_size_comes_back(number):
    assert exact(decode(encode(number))) == exact(number)


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800", "mixed \udcff and \U0001f600", "\0"])
def test_text_of_any_kind_comes_back_also_from_numpy(text):
    for value in (text, np.str_(text), {text: 1}):
        assert exact(decode(encode(value))) == exact(value)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,  # negated, not yet
        torch.arange(12).reshape(3, 4).t(),
        torch.zeros(1).expand(3),
        torch.nn.Parameter(torch.ones(2)),
        np.arange(12).reshape(3, 4)[::2, ::-1],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
)
def test_a_view_comes_back_as_what_it_shows(value):
    assert exact(decode(encode(value))) == exact(value)


def test_quantized_tensors_come_back_with_scales_and_zero_points():
    numbers = torch.tensor([[-1.0, 0.5], [0.0, 3.0]])
    made = [torch.quantize_per_tensor(numbers, 0.1, 3, dtype) for dtype in (torch.quint8, torch.qint8, torch.qint32)]
    scales, zeros = torch.tensor([0.1, 0.25], dtype=torch.float64), torch.tensor([1, 2])
    made += [torch.quantize_per_channel(numbers, scales, zeros, axis, torch.qint8) for axis in (0, 1)]
    for value in made:
        assert exact(decode(encode(value))) == exact(value)


def test_records_come_back_as_the_classes_that_the_reader_gives():
    value = [Point(1, Box((1, 2), "a")), {"b": Box(np.float32(1))}]
    assert exact(decoder([Point, Box])(encode(value))) == exact(value)
    assert exact(decode(encode(value)), classes=False) == exact(value, classes=False)


def test_a_record_that_comes_back_does_not_run_its_post_init():
    box = Box(1)
    object.__setattr__(box, "label", "never again")
    assert exact(decoder([Box])(encode(box))) == exact(box)


def test_of_two_classes_with_the_same_name_and_fields_the_first_is_taken():
    first, second = (dataclasses.make_dataclass("Twin", ["a"]) for _ in range(2))
    assert type(decoder([first, second])(encode(second(1)))) is first


class Unstorable:
    pass


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        (Unstorable(), "", "test_nested.Unstorable"),
        ([1, {"a": (0, {1})}], "/1/a/1", "a sorted list"),
        ({"a": bytearray(b"x")}, "/a", r"bytes\(...\)"),
        ({frozenset(): 1}, "", "a key of type frozenset"),
        (collections.defaultdict(list), "", r"dict\(...\)"),
        (np.array([object()]), "", "dtype object"),
        (np.zeros(2, [("a", "i4")]), "", "dtype"),
        (np.ma.masked_array([1, 2]), "", r"MaskedArray.*np\.asarray"),
        (torch.eye(2).to_sparse(), "", "layout torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "", "device meta"),
        (torch.empty(2, dtype=torch.bits8), "", "dtype torch.bits8"),
        (lambda: 0, "", "function"),
        (int, "", "type"),
        (..., "", "ellipsis"),
        (range(3), "", "range"),
        (complex(1, 2), "", "complex"),
        (Late(1), "", "'computed' was never set"),
        (torch.max(torch.zeros(2, 2), 0), "", "torch.return_types.max"),
    ],
)
def test_what_has_no_place_is_refused_with_its_path_and_type(value, path, what):
    with pytest.raises(Refused, match=what) as caught:
        encode(value)
    assert caught.value.path == path


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {1: v}, lambda v: Point(v, 0), Box])
def test_nesting_has_a_limit_below_which_everything_can_be_read_again(wrap):
    value = 1
    for _ in range(spec.MAX_NESTED_DEPTH):
        value = wrap(value)

    def far_down(frames: int) -> Any:
        return far_down(frames - 1) if frames else decode(encode(value))

    assert exact(far_down(300), classes=False) == exact(value, classes=False)
    with pytest.raises(Refused, match="128 deep"):
        encode(wrap(value))


def test_a_value_that_contains_itself_is_refused():
    value: list[Any] = []
    value.append({"again": value})
    with pytest.raises(Refused, match="contains itself"):
        encode(value)


@given(st.binary(max_size=60))
def test_bytes_that_nobody_wrote_are_a_value_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        decode(data)


@given(strategies.nested(), st.randoms(use_true_random=False))
def test_a_value_whose_bytes_were_changed_is_a_value_or_a_value_error(value, draw):
    data = bytearray(encode(value))
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    with contextlib.suppress(ValueError):
        decode(bytes(data))


def ext(code: int, *content: Any) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content)))


@pytest.mark.parametrize(
    "data",
    [
        ext(0, 1),
        ext(10, 1),
        ext(nested.ARRAY, "array", "<f8", [2], bytes(8)),
        ext(nested.ARRAY, "array", "<f8", [-1], b""),
        ext(nested.ARRAY, "array", "|O8", [1], bytes(8)),
        ext(nested.ARRAY, "array", "<V8", [1], bytes(8)),
        ext(nested.ARRAY, "array", "<U99999999999", [0], b""),
        ext(nested.ARRAY, "scalar", "<f8", [1], bytes(8)),
        ext(nested.ARRAY, "scalar", "<f8", [0], b""),
        ext(nested.ARRAY, "nested", "|u1", [1], b"x"),
        ext(nested.ARRAY, "tensor", "quint8", [1], b"x"),
        ext(nested.ARRAY, "tensor", "Tensor", [1], b"x"),
        ext(nested.ARRAY, "tensor", "uint8", [0, 2**62, 4], b""),
        ext(nested.ARRAY, "tensor", "uint8", [1.5], b"x"),
        ext(nested.ARRAY, "array"),
        ext(nested.QUANTIZED, "quint8", [1], b"x", "per_tensor_affine", [], [], 0),
        ext(nested.QUANTIZED, "quint8", [1], b"x", "per_channel_affine", [0.1], [1], 7),
        ext(nested.QUANTIZED, "quint8", [1], b"x", "per_channel_affine", [0.1, 0.2], [1, 2], 0),
        ext(nested.QUANTIZED, "quint8", [1], b"x", "something", [0.1], [1], 0),
        ext(nested.RECORD, "os", ["system"], False, [1, 2]),
        ext(nested.RECORD, "import", ["a"], False, [1]),
        ext(nested.RECORD, "a; b", ["a"], False, [1]),
        ext(nested.RECORD, 3, ["a"], False, [1]),
        ext(nested.RECORD, "A", [3], False, [1]),
        ext(nested.ORDERED, [[1], 2]),
        ext(nested.PAIRS, 1, 2),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(nested.IMAGE, b"")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(nested.TEXT, b"\xff")),
        msgspec.msgpack.encode(
            msgspec.msgpack.Ext(nested.IMAGE, msgspec.msgpack.encode(["L", 1 << 20, 1 << 20, b"", None, None]))
        ),
        msgspec.msgpack.encode(
            msgspec.msgpack.Ext(nested.IMAGE, msgspec.msgpack.encode(["Q", 1, 1, b"x", None, None]))
        ),
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"",
    ],
)
def test_what_the_format_does_not_have_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_no_name_in_the_bytes_is_looked_up_anywhere():
    got = decode(ext(nested.RECORD, "system", ["command", "_hidden", "class"], True, ["true", 1, 2]))
    assert type(got).__name__ == "system"
    assert isinstance(got, tuple)
    assert list(got) == ["true", 1, 2]


class TestImages:
    @given(strategies.images())
    def test_an_image_of_any_mode_comes_back(self, image):
        assert exact(decode(encode(image))) == exact(image)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("rgb.png", {}),
            ("rgba.png", {}),
            ("rgb.jpeg", {}),
            ("p.png", {}),
            ("p.png", {"transparency": 3}),
            ("p.png", {"transparency": bytes(range(0, 170, 10))}),
            ("p.gif", {}),
            ("p.gif", {"transparency": 2}),
            ("p.bmp", {}),
            ("rgb.png", {"transparency": (1, 2, 3)}),
        ],
    )
    def test_an_image_that_was_only_opened_comes_back_as_what_it_is_when_read(self, kind, options):
        image = strategies.saved_image(kind, **options)
        got = decode(encode(image))
        assert exact(got) == exact(image)
        assert got.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()

    def test_a_transparency_that_is_no_number_is_left_out(self):
        image = Image.new("L", (1, 1))
        image.info["transparency"] = (1.5, "a")
        assert "transparency" not in decode(encode(image)).info


def test_many_random_bytes_never_raise_anything_but_a_value_error():
    draw = random.Random(5)
    for _ in range(3000):
        code = draw.randrange(1, 11)
        body = draw.randbytes(draw.randrange(24))
        head = bytes([0xC7, len(body), code])
        with contextlib.suppress(ValueError):
            decode(head + body)
