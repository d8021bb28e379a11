"""Taking a block of samples apart at once is taking each of them apart."""

import collections
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardcache.builder.infer import infer
from shardcache.format import arrays
from shardcache.format.schema import ABSENT, DictNode, Leaf, ListNode, RecordNode, TupleNode, splitter, walk
from shardcache.format.split import block_splitter
from tests import strategies
from tests.strategies import Box, Point

pytestmark = strategies.QUIET


class Text(str):
    pass


def at_once(root: Any, samples: list[Any]) -> list[list[int]]:
    """Which objects are in each column."""
    columns = block_splitter(root)(samples)
    assert len(columns) == sum(1 for _ in walk(root))
    return [list(map(id, [ABSENT] * len(samples) if column is None else column)) for column in columns]


def one_by_one(root: Any, samples: list[Any]) -> list[list[int]]:
    rows = []
    for sample in samples:
        row: list[Any] = []
        splitter(root)(sample, row)
        rows.append(row)
    return [list(map(id, column)) for column in zip(*rows, strict=True)]


@settings(max_examples=80)
@given(st.lists(strategies.nested(strategies.plain_leaves), min_size=1, max_size=6), st.integers(1, 6))
def test_a_block_has_the_values_that_its_samples_have_one_by_one(samples, probed):
    root, _ = infer(samples[:probed])
    assert at_once(root, samples) == one_by_one(root, samples)


TREE = DictNode(
    ("a", "b", "c"),
    (
        Leaf(),
        TupleNode((Leaf(), ListNode((Leaf(), Leaf())))),
        RecordNode("Box", ("corner", "label"), (Leaf(), Leaf()), True),
    ),
)
ORDERED = DictNode(("a", "b"), (Leaf(), Leaf()), True)
POINT = RecordNode("Point", ("x", "y"), (Leaf(), Leaf()), False)
FITS = {"a": 1, "b": (2, [3, 4]), "c": Box(5, 6)}
unset = Box(1, 2)
del unset.corner
del Box.label  # else the class would still answer for a field that was never set


@pytest.mark.parametrize(
    ("root", "fits", "odd"),
    [
        (TREE, FITS, {"a": 1, "b": (2, [3, 4])}),
        (TREE, FITS, {**FITS, "d": 0}),
        (TREE, FITS, {Text("a"): 1, "b": (2, [3, 4]), "c": Box(5, 6)}),
        (TREE, FITS, {**FITS, "b": (2, [3])}),
        (TREE, FITS, {**FITS, "b": [2, [3, 4]]}),
        (TREE, FITS, {**FITS, "c": unset}),
        (TREE, FITS, {**FITS, "c": Point(1, 2)}),
        (TREE, FITS, collections.OrderedDict(FITS)),
        (TREE, FITS, None),
        (DictNode((1,), (Leaf(),)), {1: "x"}, {True: "x"}),
        (DictNode((1, "a"), (Leaf(), Leaf())), {1: "x", "a": 0}, {1: "y"}),
        (ORDERED, collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1)),
        (POINT, Point(1, 2), (1, 2)),
    ],
)
def test_one_sample_of_another_shape_goes_whole_into_its_column_and_the_others_do_not(root, fits, odd):
    for samples in ([fits] * 3, [fits, odd, fits], [odd, fits], [odd, odd]):
        assert at_once(root, samples) == one_by_one(root, samples)


@pytest.mark.parametrize(
    "values",
    [
        [np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2).T, np.arange(12.0).reshape(2, 6)[:, ::2]],
        [np.array(["2020-01-01", "NaT"], "datetime64[D]")] * 2,
        [np.array([1, 2], ">u2"), np.array([3, 4], ">u2")],
        [np.array(b"ab"), np.array(b"c\0")],
        [np.array([1, 2], np.longdouble), np.array([np.nan, -0.0], np.longdouble)],
        [np.zeros((0, 3)), np.zeros((0, 3))],
        [np.array(True), np.array(False)],
    ],
)
def test_the_bytes_of_many_arrays_are_those_of_each_in_turn(values):
    assert arrays.arrays_bytes(values) == b"".join(map(arrays.array_bytes, values))


@pytest.mark.parametrize(
    "values",
    [
        [torch.arange(6).view(2, 3), torch.arange(6).view(3, 2).T, torch.arange(12).view(2, 6)[:, ::2]],
        [torch.tensor([1 + 2j, 3j]).conj(), torch.tensor([1 + 2j, 3j])],
        [torch.tensor([1 + 2j, 3j]).conj().imag, torch.tensor([1.0, 3.0])],
        [torch.tensor(2.0, requires_grad=True), torch.tensor(float("nan"))],
        [torch.zeros(0, 3), torch.ones(0, 3)],
        *[
            [torch.arange(4, dtype=torch.uint8).view(dtype), torch.arange(8, 12, dtype=torch.uint8).view(dtype)]
            for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.uint16, torch.uint32)
        ],
    ],
)
def test_the_bytes_of_many_tensors_are_those_of_each_in_turn(values):
    assert arrays.tensors_bytes(values) == b"".join(map(arrays.tensor_bytes, values))
