"""Samples with large rows: each in memory of its own, to the bit, whichever way they are read and sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardcache
from shardcache import Cache, CachedDataset
from tests.exact import exact
from tests.read.sources import assert_same, load

SAMPLES = 24


class Rows:
    """A tensor and an array of many kilobytes, in the other byte order, beside small ones."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = np.random.default_rng(index)
        return {
            "tensor": torch.from_numpy(draw.integers(0, 9, (3, 1000, self.scale), np.int64)),
            "array": draw.integers(0, 999, (1000, 12 * self.scale)).astype(">i2"),
            "small": torch.tensor([index, 7]),
            "index": index,
        }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str, int], Cache]:
    found: dict[Any, Cache] = {}

    def build(scale: int, codec: str, rows: int) -> Cache:
        key = scale, codec, rows
        if key not in found:
            path = tmp_path_factory.mktemp("rows") / "cache"
            found[key] = shardcache.build(
                Rows(scale), path, codec=codec, block_bytes=rows * scale * 49_000, progress=False
            )
            assert found[key].manifest.rows_per_block in (rows, rows + 1)
        return found[key]

    return build


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("codec", ["none", "zstd:1"])
@pytest.mark.parametrize("rows", [1, 5])
def test_every_sample_is_what_went_in_and_its_memory_is_its_own(
    built: Callable[[int, str, int], Cache], rows: int, codec: str, io: str
) -> None:
    source = Rows(1)
    samples = list(CachedDataset(built(1, codec, rows), batch_size=None, shuffle=True, io=io))
    for sample in samples:
        assert_same(sample, source[sample["index"]])
        assert sample["tensor"].untyped_storage().nbytes() == sample["tensor"].nbytes
    for sample in samples:
        sample["tensor"].zero_()
        sample["array"][:] = 0
    kept = list(CachedDataset(built(1, codec, rows), batch_size=None, shuffle=True, io=io))
    for sample in kept:
        assert_same(sample, source[sample["index"]])


@pytest.mark.parametrize("scale", [1, 45])
def test_workers_send_them(built: Callable[[int, str, int], Cache], scale: int) -> None:
    """With a scale of 45 a row has a megabyte, and lies in the ring from the start."""
    source, dataset = Rows(scale), CachedDataset(built(scale, "none", 1), batch_size=None, shuffle=True)
    seen = []
    for sample in load(dataset, 2):
        assert_same(sample, source[sample["index"]])
        seen.append(sample["index"])
    assert sorted(seen) == list(range(SAMPLES))


def test_a_collate_fn_gets_them(built: Callable[[int, str, int], Cache]) -> None:
    source = Rows(1)
    dataset = CachedDataset(built(1, "none", 1), batch_size=5, shuffle=True, collate_fn=lambda samples: samples)
    for batch in dataset:
        assert_same(batch, [source[sample["index"]] for sample in batch])


@pytest.mark.parametrize("rows", [1, 5])
def test_a_sample_that_is_lost_is_replaced_by_a_copy(
    built: Callable[[int, str, int], Cache], tmp_path: Path, rows: int
) -> None:
    whole = built(1, "none", rows)
    copied = tmp_path / "cache"
    copied.mkdir()
    for file in whole.path.iterdir():
        copied.joinpath(file.name).write_bytes(file.read_bytes())
    value = Rows(1)[whole.indices_of(np.zeros(1, np.int64))[0]]["tensor"].numpy().tobytes()
    for file in copied.glob("shard-*"):
        data = bytearray(file.read_bytes())
        if value in data:
            data[data.index(value) + 100] ^= 1
            file.write_bytes(data)
    dataset = CachedDataset(copied, batch_size=None, order="stored", on_corrupt="skip", with_meta=True)
    with pytest.warns(shardcache.ShardCacheWarning, match="shard 00000, block 0, column 'tensor'"):
        found = list(dataset)
    assert dataset.skipped == rows == sum(not meta.valid for _, meta in found)
    for sample, meta in found:
        assert_same(sample, Rows(1)[meta.index])
    assert len({sample["tensor"].data_ptr() for sample, _ in found}) == SAMPLES


@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_a_key_that_some_samples_lack_is_a_list_though_no_block_has_both_kinds(tmp_path: Path, layout: str) -> None:
    samples = [{"n": k, **({"box": torch.full((4,), k), "name": f"box {k}"} if k % 3 else {})} for k in range(30)]
    cache = shardcache.build(samples, tmp_path / "cache", block_bytes=1, layout=layout, progress=False)
    assert cache.manifest.rows_per_block == 1
    assert [(field.name, field.batch, field.optional) for field in cache.schema] == [
        ("n", "tensor", False),
        ("box", "list", True),
        ("name", "list", True),
    ]
    assert [exact(sample) for sample in cache[:]] == [exact(sample) for sample in samples]
    assert shardcache.verify(cache.path)
    for batch in shardcache.CachedDataset(cache, batch_size=8, shuffle=True):
        for n, box, name in zip(batch["n"].tolist(), batch["box"], batch["name"], strict=True):
            assert (exact(box), name) == (exact(samples[n].get("box")), samples[n].get("name"))
