"""The shuffle buffer: what lies in it is what was read, and it holds no more than it may."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shardcache import Cache, StructureError
from shardcache.read.arena import Arena, Straight, buffer_for
from shardcache.read.blocks import Blocks
from shardcache.read.collate import native, torch_dtype
from shardcache.read.fields import TENSOR
from shardcache.read.strand import Rows
from tests.read.sources import SOURCES, as_tensor, assert_same, bits

CacheOf = Callable[..., Cache]
PER_BLOCK = 10  # of the numbers


class Reads(Blocks):
    """Remembers which blocks were read."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.path, cache.manifest)
        self.read_blocks: list[int] = []

    def read(self, number: int, *args: Any, **kwargs: Any) -> Any:
        self.read_blocks.append(number)
        return super().read(number, *args, **kwargs)


def rows(blocks: list[int], offsets: list[int], last: list[int] = [], visits: list[int] | None = None) -> Rows:  # noqa: B006
    block, offset = np.array(blocks, np.int64), np.array(offsets, np.int64)
    flags = np.isin(np.arange(len(blocks)), last)
    visit = block if visits is None else np.array(visits, np.int64)
    return Rows(visit, block, offset, np.ones(len(blocks), bool), flags)


def arena(cache: Cache, slots: int, *, keep: bool) -> tuple[Arena, Reads]:
    reads = Reads(cache)
    return Arena(reads, cache.schema.fields, slots, keep=keep), reads


def indices(cache: Cache, buffer: Arena, wanted: Rows) -> list[int]:
    """The first column (the source index) of some rows of the numbers."""
    outs = [torch.empty((len(wanted.block), *field.shape), dtype=torch_dtype(field)) for field in cache.schema]
    buffer.take(wanted, outs)
    return outs[0].tolist()  # type: ignore[no-any-return]


def expected(cache: Cache, wanted: Rows) -> list[int]:
    return cache.indices_of(wanted.block * PER_BLOCK + wanted.offset).tolist()  # type: ignore[no-any-return]


@pytest.fixture
def cache(cache_of: CacheOf) -> Cache:
    cache = cache_of("numbers")
    assert (cache.manifest.rows_per_block, cache.manifest.blocks) == (PER_BLOCK, 100)
    return cache


@pytest.mark.parametrize("block_bytes", [None, 1], ids=["slots", "straight"])
def test_every_column_of_any_dtype_is_gathered_to_the_bit(cache_of: CacheOf, block_bytes: int | None) -> None:
    cache = cache_of("columns", block_bytes=block_bytes)
    buffer = buffer_for(cache.blocks, cache.schema.fields, cache.manifest.blocks, keep=True)
    assert isinstance(buffer, Straight if block_bytes else Arena)
    order = np.random.default_rng(0).permutation(150)
    block, offset = np.divmod(order, cache.manifest.rows_per_block)
    wanted = rows(block.tolist(), offset.tolist())
    sources = cache.indices_of(order).tolist()
    tensors = [field for field in cache.schema if field.batch == TENSOR]
    outs = [torch.empty((150, *field.shape), dtype=torch_dtype(field)) for field in tensors]
    values = buffer.take(wanted, outs)
    for field in cache.schema:
        wanted_values = [SOURCES["columns"][index][field.name] for index in sources]
        if field.batch == TENSOR:
            found = native(field, outs[tensors.index(field)])
            assert [bits(row) for row in found] == [bits(as_tensor(value)) for value in wanted_values], field.name
        else:
            assert_same(values[field.position], wanted_values)


class TestWithoutKeeping:
    def test_a_block_is_read_once_and_stays_until_its_last_row(self, cache: Cache) -> None:
        buffer, reads = arena(cache, 3, keep=False)
        for wanted in (
            rows([1, 2, 1], [0, 5, 3]),
            rows([2, 3], [1, 9], last=[0]),
            rows([4, 1, 3], [2, 2, 1], last=[1, 2]),
        ):
            assert indices(cache, buffer, wanted) == expected(cache, wanted)
        assert reads.read_blocks == [1, 2, 3, 4]
        assert buffer._slots == 3

    def test_the_lowest_free_slot_is_used_again(self, cache: Cache) -> None:
        buffer, _ = arena(cache, 50, keep=False)
        for block in range(40):
            wanted = rows([block, block], [0, 9], last=[1])
            assert indices(cache, buffer, wanted) == expected(cache, wanted)
            assert buffer._free[0] == 0

    def test_two_visits_of_a_block_are_apart(self, cache: Cache) -> None:
        buffer, reads = arena(cache, 4, keep=False)
        wanted = rows([7, 7], [0, 1], last=[0], visits=[100, 200])
        assert indices(cache, buffer, wanted) == expected(cache, wanted)
        again = rows([7], [2], last=[0], visits=[200])
        assert indices(cache, buffer, again) == expected(cache, again)
        assert reads.read_blocks == [7, 7]

    def test_it_grows_rather_than_fail_and_keeps_what_it_has(self, cache: Cache) -> None:
        buffer, reads = arena(cache, 2, keep=False)
        wanted = rows(list(range(9)), [3] * 9)
        assert indices(cache, buffer, wanted) == expected(cache, wanted)
        again = rows(list(range(9)), [4] * 9, last=list(range(9)))
        assert indices(cache, buffer, again) == expected(cache, again)
        assert len(reads.read_blocks) == 9
        assert 9 <= buffer._slots <= 12


class TestKeeping:
    def test_the_block_that_was_used_longest_ago_makes_room(self, cache: Cache) -> None:
        buffer, reads = arena(cache, 2, keep=True)
        for block in (1, 2, 1, 3, 1, 2):
            wanted = rows([block], [4], last=[0])
            assert indices(cache, buffer, wanted) == expected(cache, wanted)
        assert reads.read_blocks == [1, 2, 3, 2]
        assert buffer._slots == 2

    @pytest.mark.parametrize("slots", [1, 2, 3, 7, 100])
    def test_a_batch_of_more_blocks_than_slots_is_read_in_runs(self, cache: Cache, slots: int) -> None:
        buffer, _ = arena(cache, slots, keep=True)
        random = np.random.default_rng(slots)
        for _ in range(5):
            wanted = rows(random.integers(0, 100, 33).tolist(), random.integers(0, 10, 33).tolist())
            assert indices(cache, buffer, wanted) == expected(cache, wanted)
        assert buffer._slots == slots


def test_no_rows_are_no_rows(cache: Cache) -> None:
    for keep in (False, True):
        buffer, reads = arena(cache, 2, keep=keep)
        assert indices(cache, buffer, rows([], [])) == []
        assert reads.read_blocks == []


def test_a_buffer_that_does_not_fit_into_memory_is_told_with_its_column(cache_of: CacheOf) -> None:
    cache = cache_of("numbers")
    with pytest.raises(StructureError, match=r"column '0': a shuffle buffer of \d+ blocks of 10 rows of 8 bytes needs"):
        Arena(cache.blocks, cache.schema.fields, 1 << 50, keep=False)
