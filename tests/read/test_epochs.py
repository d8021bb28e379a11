"""Epochs: which one an iteration is of, whoever lives on, whoever iterates at the same time."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from shardcache import Cache, CachedDataset, ShardCacheWarning, UsageError
from tests.read.sources import exhaust, load, numbers

CacheOf = Callable[..., Cache]


def dataset(cache_of: CacheOf, **options: Any) -> CachedDataset:
    return CachedDataset(cache_of("numbers"), **{"batch_size": 20, "shuffle": True, "shuffle_buffer": 40, **options})


@pytest.fixture(scope="module")
def expected(cache_of: CacheOf) -> dict[int, list[list[int]]]:
    found = {}
    for epoch in range(5):
        data = dataset(cache_of)
        data.set_epoch(epoch)
        found[epoch] = numbers(data)
    assert len({str(batches) for batches in found.values()}) == 5
    return found


Expected = dict[int, list[list[int]]]


class TestSetEpoch:
    @pytest.mark.parametrize(
        ("workers", "method", "persistent"),
        [(0, None, False), (2, "fork", False), (2, "fork", True), (1, "spawn", True)],
    )
    def test_gives_each_epoch_its_own_order_also_in_workers_that_live_on(
        self, cache_of: CacheOf, expected: Expected, workers: int, method: str | None, persistent: bool
    ) -> None:
        options = {"multiprocessing_context": method, "persistent_workers": persistent}
        data = dataset(cache_of)
        for loader, setter in ((data.loader(workers, **options), None), (load(data, workers, **options), data)):
            for epoch in (0, 1, 3, 2):
                (setter or loader).set_epoch(epoch)  # type: ignore[union-attr]
                assert numbers(loader) == expected[epoch]
            if method == "spawn":
                break

    @pytest.mark.parametrize("workers", [0, 2])
    def test_after_an_iteration_has_begun_is_for_the_next_one(
        self, cache_of: CacheOf, expected: Expected, workers: int
    ) -> None:
        for persistent in {False, workers > 0}:
            loader = dataset(cache_of).loader(workers, persistent_workers=persistent)
            for epoch in range(4):
                batches = iter(loader)
                loader.set_epoch(epoch + 1)
                assert numbers(batches) == expected[epoch]

    @pytest.mark.parametrize("epoch", [-1, 1.0, "1", None, True, 1 << 64])
    def test_takes_a_number_of_0_or_more(self, cache_of: CacheOf, epoch: Any) -> None:
        with pytest.raises(UsageError, match="epoch must be an int of 0 or more"):
            dataset(cache_of).set_epoch(epoch)


class TestInterruption:
    @pytest.mark.parametrize("persistent", [False, True])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_breaking_off_and_starting_again_gives_whole_epochs(
        self, cache_of: CacheOf, expected: Expected, workers: int, persistent: bool
    ) -> None:
        loader = dataset(cache_of).loader(workers, persistent_workers=persistent and workers > 0)
        for epoch in range(4):
            loader.set_epoch(epoch)
            if epoch % 2:
                assert numbers(loader) == expected[epoch]
            else:
                assert numbers(itertools.islice(loader, 5)) == expected[epoch][:5]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_two_loaders_over_one_dataset_do_not_disturb_each_other(
        self, cache_of: CacheOf, expected: Expected, workers: int
    ) -> None:
        data = dataset(cache_of)
        first, second = data.loader(workers), data.loader(workers)
        second.set_epoch(2)
        for epoch in (0, 1):
            first.set_epoch(epoch)
            second.set_epoch(epoch + 2)
            pairs = list(zip(first, second, strict=True))
            assert numbers(pair[0] for pair in pairs) == expected[epoch]
            assert numbers(pair[1] for pair in pairs) == expected[epoch + 2]

    def test_two_iterators_of_one_dataset_are_apart(self, cache_of: CacheOf, expected: Expected) -> None:
        data = dataset(cache_of)
        first = iter(data)
        next_one = numbers([next(first)])
        data.set_epoch(1)
        second = iter(data)
        assert numbers(second) == expected[1]
        assert next_one + numbers(first) == expected[0]


class TestRepetition:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_an_epoch_while_shuffling_is_said_once(self, cache_of: CacheOf, workers: int) -> None:
        loader = dataset(cache_of).loader(workers)
        list(loader)
        with pytest.warns(ShardCacheWarning, match=r"epoch 0 is iterated a second time, .*set_epoch\(epoch\)"):
            list(loader)
        list(loader)

    def test_of_an_epoch_in_an_ordinary_dataloader_is_said_by_a_worker(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of)
        list(load(data, 2))
        with pytest.raises(ShardCacheWarning, match="epoch 0 is iterated a second time"):  # an error here, there too
            exhaust(load(data, 2))
        list(load(data, 2))

    def test_is_no_matter_where_nothing_is_shuffled(self, cache_of: CacheOf) -> None:
        loader = dataset(cache_of, shuffle=False, order="stored").loader()
        for _ in range(3):
            list(loader)

    def test_is_no_matter_where_the_epoch_was_set(self, cache_of: CacheOf) -> None:
        loader = dataset(cache_of).loader(2)
        for epoch in range(3):
            loader.set_epoch(epoch)
            list(loader)


class TestSeveralEpochsInOneIteration:
    @pytest.mark.parametrize("workers", [0, 2, 3])
    def test_come_one_after_the_other(self, cache_of: CacheOf, expected: Expected, workers: int) -> None:
        loader = dataset(cache_of, epochs=3).loader(workers)
        loader.set_epoch(1)
        assert numbers(loader) == expected[1] + expected[2] + expected[3]
        assert len(loader) == 150

    @pytest.mark.parametrize("workers", [0, 2])
    def test_without_end(self, cache_of: CacheOf, expected: Expected, workers: int) -> None:
        loader = dataset(cache_of, epochs=None).loader(workers)
        found = numbers(itertools.islice(loader, 170))
        assert found == (expected[0] + expected[1] + expected[2] + expected[3])[:170]
        with pytest.raises(TypeError, match=r"epochs=None\) never ends"):
            len(loader)

    @pytest.mark.parametrize("workers", [0, 3])
    def test_are_resumed_in_the_middle(self, cache_of: CacheOf, expected: Expected, workers: int) -> None:
        loader = dataset(cache_of, epochs=None).loader(workers)
        list(itertools.islice(loader, 72))
        resumed = dataset(cache_of, epochs=None).loader(workers)
        resumed.load_state_dict(loader.state_dict())
        assert numbers(itertools.islice(resumed, 60)) == (expected[1] + expected[2])[22:82]

    @pytest.mark.parametrize("epochs", [0, -1, 1.5, "2"])
    def test_their_number_is_checked(self, cache_of: CacheOf, epochs: Any) -> None:
        with pytest.raises(UsageError, match="epochs must be 1 or more"):
            dataset(cache_of, epochs=epochs)
