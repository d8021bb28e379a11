"""Rows that hold no sample are left out of every order, and everything else stays arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardcache.read.geometry import Gaps, Geometry, Selection
from shardcache.read.plan import Order, Plan


@st.composite
def gaps(draw: st.DrawFn) -> tuple[Gaps, Selection, list[int]]:
    rows, per_block = draw(st.integers(2, 400)), draw(st.integers(1, 20))
    skipped = draw(st.sets(st.integers(0, rows - 1), min_size=1, max_size=rows - 1))
    skipped |= set(range(*sorted(draw(st.tuples(st.integers(0, rows), st.integers(0, rows)))))) - {
        draw(st.integers(0, rows - 1))
    }
    kept = [row for row in range(rows) if row not in skipped] or [0]
    listed = np.array(sorted(set(range(rows)) - set(kept)))
    found = Gaps(listed, rows, per_block, draw(st.integers(1, 9)))
    return found, Selection(np.array(kept), per_block), kept


@given(gaps())
def test_a_short_list_says_the_same_as_a_table_of_all_rows(both):
    ours, table, kept = both
    assert (ours.rows, ours.blocks) == (table.rows, table.blocks)
    rows, blocks = np.arange(ours.rows), np.arange(ours.blocks + 1)
    assert ours.start(blocks).tolist() == table.start(blocks).tolist()
    for one, other in zip(ours.locate(rows), table.locate(rows), strict=True):
        assert one.tolist() == other.tolist()
    block, offset = ours.stored(*ours.locate(rows))
    assert (block * ours.rows_per_block + offset).tolist() == kept
    firsts, ends = ours.extents()
    assert (
        np.concatenate([np.arange(*extent) for extent in zip(firsts, ends, strict=True)]).tolist()
        == blocks[:-1].tolist()
    )


@settings(max_examples=60)
@given(
    gaps(),
    st.sampled_from(["full", "lanes", "stored"]),
    st.integers(1, 40),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
def test_every_kept_row_comes_once_and_no_other(both, kind, share, strands, span):
    ours, _, kept = both
    plan = Plan(ours, Order(kind, 3, 1, share, strands, span))
    found = []
    for rank in range(strands):
        reader = plan.reader(rank, strands)
        for step in range(plan.steps):
            rows = reader.rows([step])
            found += (rows.block * ours.rows_per_block + rows.offset).tolist()
    assert sorted(found) == kept


def test_a_plan_of_a_billion_rows_with_a_million_skipped_looks_at_a_strand_and_no_more():
    rows, per_block = 10**9, 100
    skipped = np.unique(np.random.default_rng(0).integers(0, rows, 10**6))
    plan = Plan(Gaps(skipped, rows, per_block, 20_000), Order("lanes", 0, 0, 256, 1, 1024))
    reader = plan.reader(0, 1)
    found = reader.rows([plan.steps // 2])
    assert len(found.block) == 256
    assert not np.isin(found.block * per_block + found.offset, skipped).any()


def test_nothing_skipped_is_nothing_new():
    whole = Geometry(1000, 7, 5)
    assert whole.short_blocks().tolist() == []
    assert whole.block_rows == pytest.approx(7)
