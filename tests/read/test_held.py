"""Single samples, read again and again: what is held of their blocks, and for how long it is believed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardcache
from shardcache import Cache
from shardcache.errors import DamagedBlockError, DamagedError
from shardcache.format.columns import NO_VALUE
from shardcache.read import held
from shardcache.read.blocks import Blocks

ROWS = 400


@pytest.fixture(params=["none", "zstd"])
def cache(request, tmp_path: Path) -> Cache:
    samples = [
        (torch.full((40,), i % 64 / 8, dtype=torch.bfloat16), torch.tensor(float(i)), np.full(3, i, ">i4"))
        for i in range(ROWS)
    ]
    return shardcache.build(samples, tmp_path / "cache", codec=request.param, block_bytes=1024, progress=False)


def test_samples_are_the_same_at_every_visit_and_own_their_memory(cache: Cache):
    for _ in range(3):
        for index in (3, ROWS - 1, 3, 4):
            halves, one, swapped = cache[index]
            assert halves.dtype == torch.bfloat16
            assert halves.tolist() == [index % 64 / 8] * 40
            assert (one.shape, one.item()) == ((), float(index))
            assert swapped.tolist() == [index] * 3
            for value in (halves, one, swapped):
                value[...] = 0


@pytest.mark.parametrize("kind", ["all have every value", "some have none", "some lack one", "records in records"])
def test_samples_of_any_structure_are_the_same_at_every_visit(kind: str, tmp_path: Path):
    samples: list[Any] = [{"number": i, "text": "x" * i, "raw": bytes(i)} for i in range(40)]
    for i in range(0, 40, 3):
        if kind == "some have none":
            samples[i]["text"] = None
        if kind == "some lack one":
            del samples[i]["raw"]
    if kind == "records in records":
        samples = [(sample, [sample["number"]]) for sample in samples]
    cache = shardcache.build(samples, tmp_path / "cache", block_bytes=512, progress=False)
    assert cache.manifest.rows_per_block > 2
    for _ in range(4):
        for index in (3, 39, 4, 3, 5):
            assert cache[index] == cache[[0, index]][1] == samples[index]


def test_no_more_is_held_than_is_allowed(cache: Cache, monkeypatch):
    monkeypatch.setattr(held, "MAX_HELD_BYTES", 20_000)
    blocks = held.HeldBlocks(cache.blocks, cache._assembler)
    for number in range(cache.manifest.blocks):
        blocks.samples(number)
    assert cache.manifest.blocks > 20
    assert 0 < len(blocks._held) < cache.manifest.blocks - 1
    assert 0 < blocks._bytes <= 20_000
    assert blocks._bytes == sum(one.bytes for one in blocks._held.values())


def test_a_file_that_changes_is_not_believed_to_be_the_one_that_was_checked(cache: Cache):
    cache[0]
    cache[0]
    for file in cache.path.glob("shard-*.lmdb"):
        with file.open("r+b") as opened:
            opened.seek(8192)
            opened.write(os.urandom(file.stat().st_size - 8192))
    with pytest.raises(DamagedError, match="shard 0000"):
        cache[0]


def test_an_index_that_denies_a_fixed_column_its_value_is_an_error(cache: Cache, monkeypatch):
    monkeypatch.setattr(Blocks, "_index", lambda self, reader, at: bytes([NO_VALUE] * 3 * ROWS))
    says = r"shard \d+, block \d+, column '0': form 255 where the manifest says fixed"
    for index in (0, [0, 1]):
        with pytest.raises(DamagedBlockError, match=says):
            cache[index]
