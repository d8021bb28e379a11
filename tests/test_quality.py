"""How well a shuffle shuffles: the measures themselves, and that the default order passes them."""

from pathlib import Path

import numpy as np
import pytest

import shardcache
from shardcache import quality


class Sorted:
    """Samples in the order of their labels."""

    def __init__(self, count: int = 6000, classes: int = 10, row_bytes: int = 4096) -> None:
        self.count, self.classes, self.row = count, classes, np.zeros(row_bytes, np.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"x": self.row, "label": index * self.classes // self.count}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, shardcache.Cache]:
    folder: Path = tmp_path_factory.mktemp("caches")
    with pytest.warns(shardcache.ShardCacheWarning, match="column 'label' is sorted in the source"):
        source = shardcache.build(Sorted(), folder / "source", layout="source", progress=False)
    return {"source": source, "shuffled": shardcache.build(Sorted(), folder / "shuffled", progress=False)}


def test_batches_of_one_class_deviate_and_even_ones_do_not() -> None:
    labels = np.repeat(np.arange(4), 100)
    sorted_batches = np.split(np.arange(400), 10)
    even = np.split(np.arange(400).reshape(4, 100).T.reshape(-1), 10)
    assert quality.label_deviation(sorted_batches, labels) == pytest.approx(40.0, rel=0.2)
    assert quality.label_deviation(even, labels) < 0.1


def test_the_same_batches_keep_all_mates_and_crossed_ones_none() -> None:
    rows = np.arange(100).reshape(10, 10)
    assert quality.kept_mates(list(rows), list(rows)) == 1.0
    assert quality.kept_mates(list(rows), list(rows.T)) == 0.0


def test_displacement_of_the_source_order_is_none_and_of_a_shuffle_a_third() -> None:
    order = np.random.default_rng(0).permutation(10_000)
    assert quality.displacement([np.arange(10_000)]) == 0.0
    assert quality.displacement([order]) == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("batch_size", [64, 256])
def test_few_batch_mates_meet_again_in_the_default_order(caches: dict[str, shardcache.Cache], batch_size: int) -> None:
    dataset = shardcache.CachedDataset(caches["shuffled"], batch_size=batch_size, shuffle=True)
    ours, full = quality.shuffle_quality(dataset)
    assert ours.label_deviation is None
    assert ours.kept_mates < max(0.06, 1.2 * full.kept_mates)
    assert ours.displacement == pytest.approx(full.displacement, rel=0.1)


@pytest.mark.parametrize("buffer", [100, 2000, 20_000])
def test_a_shuffled_layout_mixes_labels_like_a_full_shuffle_at_any_buffer(tmp_path: Path, buffer: int) -> None:
    cache = shardcache.build(Sorted(40_000, 10, 32), tmp_path / "cache", progress=False)
    dataset = shardcache.CachedDataset(cache, batch_size=64, shuffle=True, shuffle_buffer=buffer)
    ours, full = quality.shuffle_quality(dataset, label="label")
    assert ours.label_deviation == pytest.approx(full.label_deviation, rel=0.05)


def test_a_small_buffer_does_not_mix_a_sorted_source_layout(caches: dict[str, shardcache.Cache]) -> None:
    dataset = shardcache.CachedDataset(caches["source"], batch_size=64, shuffle=True, shuffle_buffer=100)
    ours, full = quality.shuffle_quality(dataset, label="label")
    assert ours.label_deviation is not None
    assert full.label_deviation is not None
    assert ours.label_deviation > 2 * full.label_deviation


def test_single_samples_have_no_batch_mates(caches: dict[str, shardcache.Cache]) -> None:
    with pytest.raises(shardcache.UsageError, match="batch_size"):
        quality.shuffle_quality(shardcache.CachedDataset(caches["shuffled"], shuffle=True))
