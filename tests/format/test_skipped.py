"""Rows that were skipped, as text: what goes in comes out, whatever the distances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardcache.format import skipped, spec


@given(st.sets(st.integers(0, spec.MAX_ROWS - 1), min_size=1, max_size=50), st.sets(st.integers(0, 300), max_size=100))
def test_rows_come_back(far, near):
    rows = np.array(sorted(far | near))
    text = skipped.encode(rows)
    assert skipped.decode(text, len(rows), spec.MAX_ROWS).tolist() == rows.tolist()
    with pytest.raises(ValueError, match="not one of"):
        skipped.decode(text, len(rows), int(rows[-1]))


def test_a_million_rows_of_a_billion_fit_into_the_manifest():
    draw = np.random.default_rng(1)
    rows = np.unique(draw.integers(0, 10**9, 1_000_000))
    text = skipped.encode(rows)
    assert len(text) < spec.MAX_SKIPPED_BYTES * 3 // 4
    assert (skipped.decode(text, len(rows), 10**9) == rows).all()


def test_the_text_is_that_of_the_specification():
    assert skipped.encode(np.array([0, 1, 3, 130, 131 + 16384])) == "AAABfoCAAQ=="
