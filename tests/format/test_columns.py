"""The rows of a column <-> one body: in each form everything comes back as it was."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardcache.builder.infer import infer
from shardcache.format import columns, nested, spec
from shardcache.format.columns import MASKED, BlockRows, BodyError, Form, encode
from shardcache.format.schema import ABSENT, Column
from tests import strategies
from tests.exact import exact

pytestmark = strategies.QUIET
DECODE = nested.decoder()


def rows_of(column: Column, values: list[Any], form: int | None = None) -> BlockRows:
    encoded = encode(column, values)
    assert encoded is not None
    if form is not None:
        assert Form(encoded.form & ~MASKED) == form
    body = np.frombuffer(encoded.body, np.uint8)

    def fetch(row: int) -> Any:
        return np.frombuffer(encoded.large_rows[row], np.uint8)

    return BlockRows(column, encoded.form, body, len(values), DECODE, fetch)


def told(value: Any) -> Any:
    return ABSENT if value is ABSENT else exact(value)


def assert_same(column: Column, values: list[Any], form: int | None = None) -> None:
    rows = rows_of(column, values, form)
    assert [told(rows.value(row)) for row in range(len(values))] == [told(value) for value in values]
    taken = map(rows_of(column, values).taker(), range(len(values)))
    assert [told(value) for value in taken] == [told(value) for value in values]
    viewed = map(rows_of(column, values).views(), range(len(values)))
    assert [told(made(column, value)) for value in viewed] == [told(value) for value in values]


def made(column: Column, value: Any) -> Any:
    """What a view stands for."""
    if type(value) is not memoryview:
        return value
    return bytes(value) if column.type == "bytes" else str(value, "utf-8")


@pytest.mark.parametrize(("sizes", "data"), [([1, 1], "\u00fc".encode()), ([2, 1], b"ab\xff"), ([1, 2], b"a\xc3a")])
def test_texts_that_are_none_by_themselves_are_not_viewed(sizes: list[int], data: bytes) -> None:
    body = np.frombuffer(np.array(sizes, "<u8").tobytes() + data, np.uint8)
    take = BlockRows(TEXT, Form.RAGGED, body, 2, DECODE, lambda row: b"").views()
    with pytest.raises(UnicodeDecodeError):
        take(1)


def column_of(values: list[Any]) -> Column:
    """The column that a build would make for them."""
    return infer([(value,) for value in values])[1][1]


small_ints = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("column", "values", "form"),
    [
        (Column("a", "int", "<i8", ()), small_ints, Form.FIXED),
        (Column("a", "float", "<f8", ()), strategies.floats, Form.FIXED),
        (Column("a", "bool", "|b1", ()), st.booleans(), Form.FIXED),
        (Column("a", "str", "|u1", (None,)), strategies.texts, Form.RAGGED),
        (Column("a", "bytes", "|u1", (None,)), strategies.bytestrings, Form.RAGGED),
        (Column("a", "image", "|u1", (None,)), strategies.images(), Form.RAGGED),
        (Column("a", "nested", "|u1", (None,)), strategies.nested().filter(lambda v: v is not None), Form.NESTED),
    ],
    ids=lambda part: part.type if isinstance(part, Column) else None,
)
@settings(max_examples=30)
@given(st.data())
def test_each_type_of_value_comes_back_in_its_form_with_none_and_absent_rows(column, values, form, data):
    every = data.draw(st.lists(values, min_size=1, max_size=10))
    assert_same(column, every, form)
    some = data.draw(st.lists(st.one_of(values, st.none(), st.just(ABSENT)), min_size=1, max_size=20))
    has_value = any(value is not None and value is not ABSENT for value in some)
    if has_value or None in [None if value is None else 0 for value in some]:
        assert_same(column, some, form if has_value else Form.EMPTY)


@pytest.mark.parametrize("dtype", strategies.ARRAY_DTYPES, ids=lambda dtype: dtype.str)
@settings(max_examples=8)
@given(st.data())
def test_arrays_of_every_dtype_come_back_fixed_and_ragged(dtype, data):
    shape = data.draw(strategies.shapes)
    same = data.draw(st.lists(strategies.arrays(dtype, shape), min_size=1, max_size=5))
    assert_same(Column("a", "array", dtype.str, shape), same, Form.FIXED)
    if shape:
        others = data.draw(strategies.arrays(dtype, (shape[0] + 1, *shape[1:])))
        values = [*same, None, others]
        assert_same(Column("a", "array", dtype.str, (None,) * len(shape)), values, Form.RAGGED)
        assert_same(Column("a", "array", dtype.str, shape), values, Form.RAGGED)


@pytest.mark.parametrize("dtype", strategies.TENSOR_DTYPES, ids=str)
@settings(max_examples=8)
@given(st.data())
def test_tensors_of_every_dtype_come_back_fixed_and_ragged(dtype, data):
    shape = data.draw(strategies.shapes)
    name = str(dtype).removeprefix("torch.")
    same = data.draw(st.lists(strategies.tensors(dtype, shape), min_size=1, max_size=5))
    assert_same(Column("a", "tensor", name, shape), same, Form.FIXED)
    if shape:
        values = [ABSENT, *same, data.draw(strategies.tensors(dtype, (shape[0] + 1, *shape[1:])))]
        assert_same(Column("a", "tensor", name, (None,) * len(shape)), values, Form.RAGGED)


@settings(max_examples=50)
@given(st.lists(strategies.scalars(), min_size=1, max_size=6))
def test_numpy_scalars_come_back(values):
    assert_same(column_of(values), values)
    assert_same(column_of(values[:1]), values)


@given(st.lists(strategies.leaves, min_size=1, max_size=8), st.integers(0, 7))
def test_whatever_a_column_was_made_for_it_holds_every_value(values, sample):
    """The column is inferred from one value; the others may be of any type."""
    assert_same(column_of([values[sample % len(values)]]), [*values, None])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), np.zeros((3, 1))),
        (np.zeros(3), np.zeros(3, "f4")),
        (np.zeros(3), np.zeros(3, ">f8")),
        (np.zeros(3), torch.zeros(3)),
        (np.zeros(3), [0.0, 0.0, 0.0]),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)),
        (torch.zeros(()), 0.0),
        (1, 2**63),
        (1, -(2**63) - 1),
        (1, True),
        (1, 1.0),
        (1.0, np.float64(1.0)),
        (np.float32(1), np.float64(1)),
        (np.str_("ab"), np.str_("abc")),
        (np.datetime64("2020-01-01"), np.datetime64("2020-01-01T00")),
        ("text", b"bytes"),
        ("text", "\ud800"),
        ("text", np.str_("text")),
    ],
)
def test_a_value_of_another_kind_takes_its_whole_block_along_and_comes_back(before, after):
    column = column_of([before])
    assert_same(column, [before, before])
    assert_same(column, [before, after, None, before])


def test_a_block_without_any_row_of_a_column_takes_no_space():
    assert encode(Column("a", "int", "<i8", ()), [ABSENT, ABSENT]) is None


def test_nones_alone_are_a_mask():
    encoded = encode(Column("a", "int", "<i8", ()), [None, ABSENT, None])
    assert (encoded.form, encoded.body) == (Form.EMPTY | MASKED, bytes([1, 2, 1, 0, 0, 0, 0, 0]))


def test_bodies_are_laid_out_as_the_specification_says():
    fixed = encode(Column("a", "array", ">i2", (2,)), [np.array([1, 2], ">i2"), None, np.array([3, 4], ">i2")])
    assert fixed.form == Form.FIXED | MASKED
    assert fixed.body == bytes([0, 1, 0, 0, 0, 0, 0, 0]) + bytes([0, 1, 0, 2, 0, 3, 0, 4])
    ragged = encode(Column("a", "tensor", "uint8", (None, 2)), [torch.ones(2, 2, dtype=torch.uint8), torch.zeros(0, 2)])
    assert ragged.form == Form.NESTED
    ragged = encode(Column("a", "array", "|u1", (None, 2)), [np.ones((2, 2), "u1"), np.full((1, 2), 7, "u1")])
    sizes = np.array([2, 2, 1, 2], "<u8").tobytes()
    assert (ragged.form, ragged.body) == (Form.RAGGED, sizes + bytes([1, 1, 1, 1, 7, 7]))
    text = encode(Column("a", "str", "|u1", (None,)), ["é", ""])
    assert (text.form, text.body) == (Form.RAGGED, np.array([2, 0], "<u8").tobytes() + "é".encode())
    plain = encode(Column("a", "nested", "|u1", (None,)), [[1], {"a": None}])
    assert (plain.form, plain.body) == (Form.NESTED, np.array([2, 4], "<u8").tobytes() + b"\x91\x01" + b"\x81\xa1a\xc0")


class TestLargeRows:
    @pytest.fixture(autouse=True)
    def small_limit(self, monkeypatch):
        monkeypatch.setattr(spec, "LARGE_ROW_BYTES", 100)

    @pytest.mark.parametrize(
        "of",
        [
            lambda size: np.arange(size, dtype=np.uint8),
            lambda size: torch.arange(size, dtype=torch.uint8),
            lambda size: bytes(range(size)),
            lambda size: "x" * size,
            lambda size: {"a": [bytes(size)], "b": (1, 2)},
        ],
    )
    def test_a_large_row_has_a_key_of_its_own(self, of):
        values = [of(3), of(200), None, of(0), of(150), of(7)]
        column = column_of(values)
        assert set(encode(column, values).large_rows) == {1, 4}
        assert_same(column, values)

    def test_only_the_large_row_that_is_asked_for_is_fetched(self):
        values = [bytes(200), b"small", bytes(300)]
        column = column_of(values)
        encoded = encode(column, values)
        fetched = []

        def fetch(row):
            fetched.append(row)
            return np.frombuffer(encoded.large_rows[row], np.uint8)

        rows = BlockRows(column, encoded.form, np.frombuffer(encoded.body, np.uint8), 3, DECODE, fetch)
        assert rows.value(1) == b"small"
        assert fetched == []
        assert rows.value(2) == values[2]
        assert fetched == [2]

    def test_a_large_row_alone_in_its_block_needs_none(self):
        values = [bytes(500)]
        assert encode(column_of(values), values).large_rows == {}
        assert_same(column_of(values), values)

    def test_the_limit_itself_is_not_large(self):
        values = [bytes(100), bytes(101)]
        assert set(encode(column_of(values), values).large_rows) == {1}
        assert_same(column_of(values), values)


TEXT = Column("a", "str", "|u1", (None,))
PAIR = Column("a", "array", "<f4", (2,))
IMAGE = Column("a", "image", "|u1", (None,))


@pytest.mark.parametrize(
    ("column", "form", "body", "rows"),
    [
        (PAIR, Form.FIXED, bytes(15), 2),
        (PAIR, Form.FIXED, bytes(17), 2),
        (PAIR, Form.FIXED | MASKED, bytes(7), 2),
        (PAIR, Form.FIXED | MASKED, bytes(8), 2),
        (PAIR, Form.FIXED | MASKED, bytes([3, 0, 0, 0, 0, 0, 0, 0]) + bytes(8), 2),
        (PAIR, Form.EMPTY, b"", 2),
        (PAIR, Form.EMPTY | MASKED, bytes([1, 1, 0, 0, 0, 0, 0, 0, 9]), 2),
        (PAIR, Form.RAGGED, bytes(7), 1),
        (PAIR, Form.RAGGED, np.array([2], "<u8").tobytes() + bytes(9), 1),
        (TEXT, Form.FIXED, bytes(2), 2),
        (TEXT, Form.RAGGED, np.array([1, 2], "<u8").tobytes() + b"ab", 2),
        (TEXT, Form.RAGGED, np.array([1, 2], "<u8").tobytes() + b"abcd", 2),
        (TEXT, Form.RAGGED, np.array([2**63, 2**63], "<u8").tobytes(), 2),
        (TEXT, Form.RAGGED, np.array([2**41, 1], "<u8").tobytes() + b"a", 2),
        (Column("a", "array", "|u1", (None,) * 40), Form.RAGGED, np.full(40, 2**63, "<u8").tobytes(), 1),
        (Column("a", "array", "|u1", (None,) * 2), Form.RAGGED, np.array([2**63, 2], "<u8").tobytes(), 1),
        (TEXT, Form.NESTED, bytes(15), 2),
    ],
)
def test_a_body_of_the_wrong_size_is_refused(column, form, body, rows):
    with pytest.raises(BodyError):
        BlockRows(column, form, np.frombuffer(body, np.uint8), rows, DECODE, lambda row: b"")


@pytest.mark.parametrize(
    ("column", "form", "data"),
    [
        (TEXT, Form.RAGGED, b"\xff"),
        (IMAGE, Form.RAGGED, b"\x93abc"),
        (IMAGE, Form.RAGGED, b""),
        (PAIR, Form.NESTED, b"\xc1"),
        (Column("a", "nested", "|u1", (None,)), Form.RAGGED, b"x"),
    ],
)
def test_a_row_that_is_not_a_value_is_a_value_error(column, form, data):
    body = np.frombuffer(np.array([len(data)], "<u8").tobytes() + data, np.uint8)
    rows = BlockRows(column, form, body, 1, DECODE, lambda row: b"")
    with pytest.raises(ValueError, match=r"."):
        rows.value(0)


@given(st.sampled_from([TEXT, PAIR, IMAGE, Column("a", "tensor", "int16", (None, None))]), st.data())
def test_bodies_that_nobody_wrote_are_refused_or_read(column, data):
    form = data.draw(st.sampled_from(list(Form))) | data.draw(st.sampled_from([0, MASKED]))
    body = np.frombuffer(data.draw(st.binary(max_size=80)), np.uint8)
    count = data.draw(st.integers(1, 5))
    try:
        rows = BlockRows(column, form, body, count, DECODE, lambda row: b"")
    except (BodyError, ValueError):
        return
    for row in range(count):
        with contextlib.suppress(ValueError):
            rows.value(row)


def test_values_own_their_memory_so_that_a_block_can_go():
    values = [np.arange(4), np.arange(4)]
    rows = rows_of(column_of(values), values)
    first = rows.value(0)
    first[:] = 9
    assert rows.value(0).tolist() == [0, 1, 2, 3]
    assert columns.fixed_row_bytes(column_of(values)) == 32
