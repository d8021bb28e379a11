"""The permutation belongs to the format: whatever changes these numbers orphans every shuffled cache."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardcache.format import spec
from shardcache.format.manifest import layout_permutation
from shardcache.format.permutation import MAX_LENGTH, Permutation, Windows, derive, mix, random_words

lengths = st.one_of(
    st.integers(1, 300), st.integers(1, 2**48), st.sampled_from([2**k + d for k in (1, 8, 40) for d in (-1, 0, 1)])
)
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


FROZEN = {
    (10, 0): [8, 5, 7, 3, 4, 1, 2, 0, 6, 9],
    (37, 12345): [22, 15, 0, 36, 2, 21, 19, 6, 28, 3, 12, 33],
    (2**40 + 1, 2**64 - 1): [422576935219, 463206028517, 911807372921, 370267959059],
    (MAX_LENGTH, 3): [1968440100806954403, 1467533142042889909, 4110901557436214390],
    "layout": [2, 15, 14, 19, 10, 16, 18, 0, 9, 13, 11, 8, 3, 17, 1, 4, 6, 5, 7, 12],
    "mix": [0, 6238072747940578789, 13029008266876403067],
    "derive": [0, 16294208416658607535, 652428288534806038, 7958955049054603978, 18025994121618485530],
    "words": [16130647274078768347, 3798942431507431666, 4511785187589835452],
}


def by_the_book(n: int, key: int, index: int) -> int:
    """Written from the specification's text alone."""
    m1, m2, g, word = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15, 2**64

    def mixed(w: int) -> int:
        w = (w ^ w >> 30) * m1 % word
        w = (w ^ w >> 27) * m2 % word
        return w ^ w >> 31

    bits = max(2, (n - 1).bit_length())
    low_bits, high_bits = bits - bits // 2, bits // 2

    def f(half: int, r: int) -> int:
        w = (half ^ mixed((key + g + r) % word)) * m1 % word
        return (w ^ w >> 32) * m2 % word >> 32

    while True:
        low, high = index % 2**low_bits, index >> low_bits
        for r in range(0, 8, 2):
            high ^= f(low, r) % 2**high_bits
            low ^= f(high, r + 1) % 2**low_bits
        index = high << low_bits | low
        if index < n:
            return index


@given(st.integers(2, 2**48), keys, st.data())
def test_it_is_what_the_text_of_the_specification_says(length, key, data):
    index = data.draw(st.integers(0, length - 1))
    assert Permutation(length, key).forward(index) == by_the_book(length, key, index)


def test_a_shuffled_order_looks_like_one():
    n = 4096
    for key in range(3):
        order = Permutation(n, key).forward(np.arange(n))
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.06
        assert (np.abs(np.diff(order)) == 1).sum() < 12


@given(st.integers(1, 500), st.integers(1, 60), st.integers(0, 2**64 - 1))
def test_windows_are_permutations_of_their_own(length, window, key):
    windows, rows = Windows(length, window, key), np.arange(length)
    expected = np.concatenate(
        [
            start
            + Permutation(min(window, length - start), derive(key, number)).forward(rows[: min(window, length - start)])
            for number, start in enumerate(range(0, length, window))
        ]
    )
    assert windows.forward(rows).tolist() == expected.tolist() == [windows.forward(row) for row in range(length)]
    assert windows.inverse(expected).tolist() == rows.tolist() == [windows.inverse(int(row)) for row in expected]


def test_many_small_windows_cost_no_more_than_one_large_one():
    rows = np.arange(1_000_000)
    found = Windows(1_000_000, 3, 7).forward(rows)
    assert (np.abs(found - rows) <= 2).all()
