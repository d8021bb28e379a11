"""Names of element types: a table and nothing else."""

import numpy as np
import pytest
import torch

from shardcache.format import dtypes
from tests.strategies import ARRAY_DTYPES, TENSOR_DTYPES

ALL_TENSOR_DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}


@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=lambda dtype: dtype.str)
def test_every_storable_array_dtype_is_found_by_its_name(dtype):
    assert dtypes.is_storable(dtype)
    assert dtypes.array_dtype(dtype.str) == dtype
    assert dtypes.item_bytes("array", dtype.str) == dtype.itemsize


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
def test_every_storable_tensor_dtype_is_found_by_its_name(dtype):
    name = dtypes.tensor_name(dtype)
    assert dtypes.tensor_dtype(name) is dtype
    assert dtypes.item_bytes("tensor", name) == dtype.itemsize


def test_the_dtypes_of_this_torch_that_have_no_place_are_those_without_whole_bytes():
    homeless = {str(dtype) for dtype in ALL_TENSOR_DTYPES if not dtypes.is_tensor_dtype(dtype)}
    assert all(name.startswith(("torch.bits", "torch.int", "torch.uint", "torch.quint")) for name in homeless)
    assert not homeless & {"torch.int8", "torch.uint8", "torch.quint8"}


@pytest.mark.parametrize(
    "name",
    [
        *"|O8 |V8 O object float64 f8 =f8 <f7 <f32 <c2 |i2 >u1 <M8[0.5s] <M8[parsec]".split(),
        *"<U-1 <U <U536870912 |S1234567890".split(),
        "",
        "<f8,<f8",
        "(2,)<f8",
        "<M8[μs]",
        "<f8\n",
        " <f8",
        "|b2",
    ],
)
def test_a_name_that_is_not_in_the_table_is_refused(name):
    with pytest.raises(ValueError, match="element type"):
        dtypes.array_dtype(name)


@pytest.mark.parametrize("name", ["Tensor", "nn", "dtype", "float", "bits8", "int4", "", "__doc__", "load"])
def test_a_tensor_dtype_that_is_not_in_the_table_is_refused(name):
    with pytest.raises(ValueError, match="element type"):
        dtypes.tensor_dtype(name)
    with pytest.raises(ValueError, match="element type"):
        dtypes.item_bytes("tensor", name)


@pytest.mark.parametrize("dtype", [object, [("a", "i4")], "V4", (np.void, 3), [("a", object)]])
def test_objects_and_structures_have_no_place(dtype):
    assert not dtypes.is_storable(np.dtype(dtype))


def test_a_byte_order_is_told():
    assert dtypes.is_swapped(">f8")
    assert not dtypes.is_swapped("<f8")
    assert not dtypes.is_swapped("|u1")


@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=lambda dtype: dtype.str)
def test_a_tensor_dtype_is_named_for_exactly_the_arrays_that_torch_can_hold(dtype):
    name = dtypes.tensor_name_of_array(dtype.str)
    native = np.zeros(1, dtype.newbyteorder("="))
    try:
        expected = dtypes.tensor_name(torch.from_numpy(native).dtype)
    except TypeError:
        expected = None
    assert name == expected
