"""``ds.loader()`` and resuming: the batches that were left, and no others."""

import itertools
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import DataLoader

from shardcache import Cache, CachedDataset, Loader, UsageError
from tests.read.sources import load, numbers

CacheOf = Callable[..., Cache]


def dataset(cache_of: CacheOf, name: str = "numbers", layout: str = "shuffled", **options: Any) -> CachedDataset:
    options = {"batch_size": 8, "shuffle": True, "shuffle_buffer": 40, **options}
    return CachedDataset(cache_of(name, layout), **options)


@pytest.fixture
def epochs(cache_of: CacheOf) -> Callable[[int], list[list[int]]]:
    """The batches of an undisturbed epoch."""

    def batches(epoch: int) -> list[list[int]]:
        data = dataset(cache_of)
        data.set_epoch(epoch)
        return numbers(data)

    return batches


class TestLoader:
    def test_is_an_ordinary_dataloader(self, cache_of: CacheOf) -> None:
        loader = dataset(cache_of).loader(2, prefetch_factor=3, persistent_workers=True)
        assert isinstance(loader, Loader)
        assert isinstance(loader, DataLoader)
        assert loader.batch_size is None
        assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, True)
        assert len(loader) == 125

    @pytest.mark.parametrize("option", ["batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"])
    def test_refuses_what_belongs_to_the_dataset(self, cache_of: CacheOf, option: str) -> None:
        with pytest.raises(UsageError, match=rf"loader\({option}=...\): say it to CachedDataset"):
            dataset(cache_of).loader(**{option: 4})

    def test_refuses_batches_out_of_order(self, cache_of: CacheOf) -> None:
        with pytest.raises(UsageError, match="in_order=False"):
            dataset(cache_of).loader(2, in_order=False)

    def test_takes_a_collate_fn_as_any_dataloader_does(self, cache_of: CacheOf) -> None:
        assert max(dataset(cache_of).loader(collate_fn=len)) == 2

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("prefetch", [1, 5])
    def test_the_state_counts_what_was_delivered_whatever_was_prefetched(
        self, cache_of: CacheOf, workers: int, prefetch: int
    ) -> None:
        options = {"prefetch_factor": prefetch} if workers else {}
        loader = dataset(cache_of).loader(workers, **options)
        assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (0, 0)
        for step, _ in enumerate(loader, 1):
            assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (0, step)
        loader.set_epoch(1)
        assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (1, 0)

    def test_the_state_is_of_plain_values_and_does_not_depend_on_the_workers(self, cache_of: CacheOf) -> None:
        states = []
        for workers in (0, 1, 2):
            loader = dataset(cache_of).loader(workers)
            list(itertools.islice(loader, 7))
            states.append(loader.state_dict())
        assert json.loads(json.dumps(states[0])) == states[0] == states[1] == states[2]

    def test_the_dataset_itself_says_that_it_cannot_know(self, cache_of: CacheOf) -> None:
        with pytest.raises(UsageError, match=r"loader = ds.loader\(...\) and loader.state_dict\(\), or .*ds.resume"):
            dataset(cache_of).state_dict()


class TestResuming:
    @pytest.mark.parametrize(
        ("before", "after", "step"),
        [(0, 0, step) for step in (0, 1, 47, 48, 70, 124, 125)]
        + [(2, 3, step) for step in (1, 48, 70, 124)]
        + [(3, 0, 47), (0, 4, 70), (8, 1, 70), (1, 8, 47)],
    )
    def test_gives_the_batches_that_were_left_for_any_numbers_of_workers(
        self, cache_of: CacheOf, epochs: Any, before: int, after: int, step: int
    ) -> None:
        whole = epochs(3)
        loader = dataset(cache_of).loader(before)
        loader.set_epoch(3)
        assert numbers(itertools.islice(loader, step)) == whole[:step]
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = dataset(cache_of).loader(after)
        resumed.load_state_dict(state)
        resumed.set_epoch(3)  # as the loop over epochs does
        assert numbers(resumed) == whole[step:]
        assert len(resumed) == 125

    @pytest.mark.parametrize("persistent", [False, True])
    def test_later_epochs_are_whole_again(self, cache_of: CacheOf, epochs: Any, persistent: bool) -> None:
        loader = dataset(cache_of).loader(2, persistent_workers=persistent)
        loader.load_state_dict({**loader.state_dict(), "epoch": 1, "step": 100})
        assert numbers(loader) == epochs(1)[100:]
        assert loader.state_dict()["step"] == 125
        for epoch in (2, 3):
            loader.set_epoch(epoch)
            assert numbers(loader) == epochs(epoch)

    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
    def test_without_set_epoch_the_next_iteration_is_whole_too(
        self, cache_of: CacheOf, workers: int, persistent: bool
    ) -> None:
        for make in (lambda data: data.loader(workers, persistent_workers=persistent), None):
            data = dataset(cache_of, shuffle=False, order="stored")
            whole = numbers(dataset(cache_of, shuffle=False, order="stored"))
            data.resume(epoch=0, step=120)
            loader = make(data) if make else load(data, workers, persistent_workers=persistent)
            assert numbers(loader) == whole[120:]
            assert numbers(loader) == whole

    def test_in_the_middle_of_an_epoch_of_a_loader_that_lives_on(self, cache_of: CacheOf, epochs: Any) -> None:
        loader = dataset(cache_of).loader(2, persistent_workers=True)
        assert numbers(itertools.islice(loader, 10)) == epochs(0)[:10]
        state = loader.state_dict()
        loader.set_epoch(1)
        assert numbers(itertools.islice(loader, 3)) == epochs(1)[:3]
        loader.load_state_dict(state)
        assert numbers(loader) == epochs(0)[10:]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_resumed_iteration_counts_on(self, cache_of: CacheOf, epochs: Any, workers: int) -> None:
        loader = dataset(cache_of).loader(workers)
        delivered = []
        for size in (13, 0, 50, 30, 100):
            delivered += numbers(itertools.islice(loader, size))
            state = loader.state_dict()
            loader = dataset(cache_of).loader(workers)
            loader.load_state_dict(state)
        assert delivered == epochs(0)

    def test_an_ordinary_dataloader_by_hand(self, cache_of: CacheOf, epochs: Any) -> None:
        data = dataset(cache_of)
        data.resume(epoch=2, step=60)
        assert numbers(load(data, 2)) == epochs(2)[60:]
        data.set_epoch(3)
        assert numbers(load(data, 2)) == epochs(3)

    def test_on_another_world_size_that_divides_the_canonical_ranks(self, cache_of: CacheOf) -> None:
        def loaders(world: int) -> list[Loader]:
            options = {"batch_size": 24 // world, "canonical_ranks": 6, "remainder": "pad"}
            return [dataset(cache_of, rank=rank, world_size=world, **options).loader() for rank in range(world)]

        def batches(ranks: list[Loader], count: int | None = None) -> list[list[int]]:
            shares = [numbers(itertools.islice(loader, count)) for loader in ranks]
            return [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]

        whole = batches(loaders(6))
        first = loaders(3)
        found = batches(first, 17)
        then = loaders(2)
        for loader in then:
            loader.load_state_dict(first[0].state_dict())
        assert found + batches(then) == whole

    @pytest.mark.parametrize("step", [-1, 126, 1.0, None])
    def test_at_a_step_that_there_is_not_is_refused(self, cache_of: CacheOf, step: Any) -> None:
        with pytest.raises(UsageError, match=r"step must be 0\.\.125"):
            dataset(cache_of).resume(epoch=0, step=step)


class TestStatesThatDoNotFit:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": 1}, r"saved with seed=0; now it is 1"),
            ({"batch_size": 16}, r"saved with a global batch of 8.*now it is 16 .*pass batch_size=8"),
            ({"shuffle": False, "order": "stored"}, r"saved with order='shuffled'; now it is 'stored'"),
            ({"canonical_ranks": 2}, r"saved with canonical_ranks=1; now it is 2"),
            ({"layout": "source"}, r"another cache"),
            ({"shuffle_buffer": 5000}, r"shuffle_buffer"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else None,
    )
    def test_are_refused_with_what_would_be_right(self, cache_of: CacheOf, options: Any, message: str) -> None:
        state = dataset(cache_of).loader().state_dict()
        with pytest.raises(UsageError, match=message):
            dataset(cache_of, **options).loader().load_state_dict(state)

    @pytest.mark.parametrize("state", [None, {}, [], {"epoch": 0, "step": 3}, {"version": 99}])
    def test_of_something_else_are_refused(self, cache_of: CacheOf, state: Any) -> None:
        with pytest.raises(UsageError, match="not a state of"):
            dataset(cache_of).loader().load_state_dict(state)

    @pytest.mark.parametrize("change", [{"step": 10**6}, {"step": -1}, {"epoch": -1}, {"epoch": "1"}, {"step": None}])
    def test_with_a_place_that_there_is_not_are_refused(self, cache_of: CacheOf, change: Any) -> None:
        loader = dataset(cache_of).loader()
        with pytest.raises(UsageError, match="must be"):
            loader.load_state_dict({**loader.state_dict(), **change})


def test_a_number_of_workers_whose_batches_come_in_an_order_of_their_own_cannot_save_a_position(
    cache_of: Callable[..., Cache],
) -> None:
    dataset = CachedDataset(cache_of("numbers"), batch_size=4, shuffle=True, shuffle_buffer=8)
    loader = dataset.loader(5)
    assert loader.state_dict()["step"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also in the workers, where that very order is warned of
        batches = iter(loader)
        next(batches)
    with pytest.raises(UsageError, match="divides 48"):
        loader.state_dict()


def test_set_epoch_on_the_dataset_reaches_the_loaders_that_it_made(cache_of: Callable[..., Cache]) -> None:
    dataset = CachedDataset(cache_of("numbers"), batch_size=4, shuffle=True)
    loader = dataset.loader()
    first = [batch[0].tolist() for batch in loader]
    dataset.set_epoch(1)
    assert loader.state_dict()["epoch"] == 1
    assert [batch[0].tolist() for batch in loader] != first
