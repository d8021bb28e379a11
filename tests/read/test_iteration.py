"""Between the dataset and the DataLoader around it: what goes wrong in the first hour is said."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardcache
from shardcache import Cache, CachedDataset, ShardCacheWarning, UsageError
from tests.read.sources import Mapped, exhaust, load, numbers

CacheOf = Callable[..., Cache]


def dataset(cache_of: CacheOf, **options: Any) -> CachedDataset:
    return CachedDataset(cache_of("numbers"), **{"batch_size": 20, "order": "stored", **options})


class TestADataLoaderThatBatchesAgain:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("options", [{}, {"batch_size": 32}, {"batch_size": 32, "drop_last": True}], ids=str)
    def test_is_an_error_that_says_what_to_write(self, cache_of: CacheOf, options: Any, workers: int) -> None:
        loader = DataLoader(dataset(cache_of), num_workers=workers, **options)
        with pytest.raises(
            UsageError, match=r"batch them again .*write DataLoader\(ds, batch_size=None\),? or ds.loader"
        ):
            exhaust(loader)

    def test_of_single_samples_is_a_warning(self, cache_of: CacheOf) -> None:
        with pytest.warns(ShardCacheWarning, match="each worker ends with a short one"):
            found = numbers(DataLoader(dataset(cache_of, batch_size=None), batch_size=32))
        assert [len(batch) for batch in found] == [32] * 31 + [8]

    def test_is_no_matter_where_another_dataset_is_around_it(self, cache_of: CacheOf) -> None:
        found = DataLoader(Mapped(dataset(cache_of), len), batch_size=5)
        assert sum(len(batch) for batch in found) == 50

    def test_is_no_matter_where_there_is_no_dataloader(self, cache_of: CacheOf) -> None:
        assert len(list(dataset(cache_of))) == 50


class TestWhatCannotBeSent:
    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    @pytest.mark.parametrize("option", ["transform", "batch_transform", "collate_fn"])
    def test_a_lambda_is_named_with_its_file_and_line(self, cache_of: CacheOf, option: str, method: str) -> None:
        data = dataset(cache_of, **{option: lambda value: value})
        with pytest.raises(
            UsageError, match=rf"{option} is a lambda \(.*test_iteration.py:\d+\).* spawn or forkserver"
        ):
            exhaust(load(data, 1, multiprocessing_context=method))

    def test_a_function_in_a_function_is_named_too(self, cache_of: CacheOf) -> None:
        def crop(value: Any) -> Any:
            return value

        with pytest.raises(UsageError, match=r"transform\['0'\] is the local function .*crop.*test_iteration.py:\d+"):
            pickle.dumps(dataset(cache_of, transform={"0": crop}))

    def test_under_fork_a_lambda_is_fine(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, batch_transform=lambda batch: len(batch[0]))
        assert sum(load(data, 2, multiprocessing_context="fork")) == 1000

    def test_a_dataset_that_was_pickled_reads_the_same(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, order="shuffled", transform={"0": abs})
        data.set_epoch(3)
        assert numbers(pickle.loads(pickle.dumps(data))) == numbers(data)


class TestErrorsInWorkers:
    def test_before_the_first_batch_reach_the_user(self, cache_of: CacheOf, tmp_path: Any) -> None:
        import shutil

        import shardcache

        cache = cache_of("numbers")
        shutil.copytree(cache.path, tmp_path / "copy")
        copy = shardcache.open(tmp_path / "copy")
        for shard in copy.path.iterdir():
            if "manifest" not in shard.name:
                shard.unlink()
        for workers in (0, 2):
            with pytest.raises(shardcache.MissingShardError, match="shard 00000"):
                exhaust(load(CachedDataset(copy, batch_size=4, order="stored"), workers))


def test_a_sample_without_any_of_the_columns_that_are_read_is_none(tmp_path: Path) -> None:
    samples = [{"a": index, "rare": "x"} if index % 2 else {"a": index} for index in range(20)]
    cache = shardcache.build(samples, tmp_path / "c", layout="source", progress=False)
    found = list(shardcache.CachedDataset(cache, columns=["rare"]))
    assert found == [{"rare": "x"} if index % 2 else None for index in range(20)]
