"""The permutation belongs to the format: whatever changes these numbers orphans every shuffled cache."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardcache.format import spec
from shardcache.format.manifest import layout_permutation
from shardcache.format.permutation import MAX_LENGTH, Permutation, derive, mix, random_words

lengths = st.one_of(st.integers(1, 300), st.integers(1, 2**48), st.sampled_from([2**k + d for k in (1, 8, 40) for d in (-1, 0, 1)]))
keys = st.integers(0, 2**64 - 1)


@given(lengths, keys, st.data())
def test_both_ways_are_inverse_and_stay_inside_for_ints_and_arrays(length, key, data):
    permutation = Permutation(length, key)
    index = data.draw(st.integers(0, length - 1))
    there = permutation.forward(index)
    assert 0 <= there < length
    assert permutation.inverse(there) == index
    indices = np.array(data.draw(st.lists(st.integers(0, length - 1), max_size=20)), np.int64)
    moved = permutation.forward(indices)
    assert moved.dtype == np.int64
    assert moved.tolist() == [permutation.forward(one) for one in indices.tolist()]
    assert permutation.inverse(moved).tolist() == indices.tolist()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 17, 64, 1000])
def test_every_index_is_met_once(length):
    permutation = Permutation(length, 7)
    assert sorted(permutation.forward(np.arange(length)).tolist()) == list(range(length))


def test_the_arguments_are_left_alone():
    for length in (1, 100):
        indices = np.arange(length)
        Permutation(length, 1).forward(indices)[:] = 5
        assert indices.tolist() == list(range(length))


def test_its_output_is_frozen():
    assert Permutation(10, 0).forward(np.arange(10)).tolist() == FROZEN[10, 0]
    assert Permutation(37, 12345).forward(np.arange(12)).tolist() == FROZEN[37, 12345]
    assert Permutation(2**40 + 1, 2**64 - 1).forward(np.arange(4)).tolist() == FROZEN[2**40 + 1, 2**64 - 1]
    assert [Permutation(MAX_LENGTH, 3).forward(k) for k in (0, 1, MAX_LENGTH - 1)] == FROZEN[MAX_LENGTH, 3]
    assert layout_permutation(20, -1).forward(np.arange(20)).tolist() == FROZEN["layout"]
    assert [mix(0), mix(1), mix(2**64 - 1)] == FROZEN["mix"]
    assert [derive(0), derive(0, 0), derive(1, 2, 3), derive(5, -1), derive(0, spec.LAYOUT_STREAM)] == FROZEN["derive"]
    assert random_words(9, np.array([0, 1, 2**62])).tolist() == FROZEN["words"]


FROZEN: dict = {}


def test_a_shuffled_order_looks_like_one():
    n = 4096
    for key in range(3):
        order = Permutation(n, key).forward(np.arange(n))
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.06
        assert (np.abs(np.diff(order)) == 1).sum() < 12
