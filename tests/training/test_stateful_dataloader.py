"""torchdata's ``StatefulDataLoader`` keeps the state of each worker; a dataset's iteration has one."""

import copy
import itertools
from typing import Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from shardcache import Cache, CachedDataset, UsageError
from tests.read.sources import numbers
from tests.training.conftest import CacheOf
from tests.training.test_resume import SMALL_BUFFER, epoch_of, loader_of

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it

WORKERS = [(0, False), (1, False), (2, False), (3, True)]


@pytest.fixture(scope="module")
def cache(numbers_of: CacheOf) -> Cache:
    return numbers_of(1000)


def stateful(cache: Cache, workers: int, persistent: bool, **options: Any) -> StatefulDataLoader:
    options = {"batch_size": 32, "shuffle": True, "seed": 5, **SMALL_BUFFER, **options}
    return StatefulDataLoader(
        CachedDataset(cache, **options), batch_size=None, num_workers=workers, persistent_workers=persistent
    )


def one_epoch(loader: StatefulDataLoader, epoch: int) -> list[list[int]]:
    loader.dataset.set_epoch(epoch)
    return numbers(loader)


@pytest.mark.parametrize(("workers", "persistent"), WORKERS)
def test_it_gives_the_epochs_of_a_loader_of_ours(cache: Cache, workers: int, persistent: bool) -> None:
    loader = stateful(cache, workers, persistent)
    for epoch in (0, 1, 2):
        assert one_epoch(loader, epoch) == epoch_of(loader_of(cache), epoch)


@pytest.mark.parametrize(("workers", "persistent"), WORKERS)
@pytest.mark.parametrize("step", [1, 13, 31, 32])
def test_a_new_one_goes_on_where_the_state_was_taken(cache: Cache, workers: int, persistent: bool, step: int) -> None:
    expected = [epoch_of(loader_of(cache), epoch) for epoch in range(5)]
    first = stateful(cache, workers, persistent)
    assert one_epoch(first, 2) == expected[2]
    first.dataset.set_epoch(3)
    batches = iter(first)
    assert numbers(itertools.islice(batches, step)) == expected[3][:step]
    state = copy.deepcopy(first.state_dict())
    del batches, first
    second = stateful(cache, workers, persistent)
    second.load_state_dict(state)
    assert numbers(second) == expected[3][step:]
    assert one_epoch(second, 4) == expected[4]


@pytest.mark.parametrize(("workers", "persistent"), WORKERS)
def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next(cache: Cache, workers: int, persistent: bool) -> None:
    expected = [epoch_of(loader_of(cache), epoch) for epoch in range(3)]
    first = stateful(cache, workers, persistent)
    assert one_epoch(first, 0) == expected[0]
    state = copy.deepcopy(first.state_dict())
    second = stateful(cache, workers, persistent)
    second.load_state_dict(state)
    assert one_epoch(second, 1) == expected[1]
    assert one_epoch(second, 2) == expected[2]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_an_endless_iteration_too(cache: Cache, workers: int, persistent: bool) -> None:
    expected = [batch for epoch in range(3) for batch in epoch_of(loader_of(cache), epoch)]
    first = stateful(cache, workers, persistent, epochs=None)
    assert numbers(itertools.islice(first, 40)) == expected[:40]
    state = first.state_dict()
    second = stateful(cache, workers, persistent, epochs=None)
    second.load_state_dict(state)
    assert numbers(itertools.islice(second, 50)) == expected[40:90]


def test_samples_too(cache: Cache) -> None:
    first = stateful(cache, 2, False, batch_size=None)
    samples = [index for index, _ in itertools.islice(first, 700)]
    state = first.state_dict()
    second = stateful(cache, 2, False, batch_size=None)
    second.load_state_dict(state)
    samples += [index for index, _ in second]
    assert sorted(samples) == list(range(1000))


def test_a_state_of_something_else_is_refused(cache: Cache) -> None:
    first = stateful(cache, 0, False)
    list(itertools.islice(first, 3))
    state = first.state_dict()
    for other, said in (
        ({"seed": 6}, "seed=5; now it is 6"),
        ({"batch_size": 16}, "global_batch_size=32; now it is 16"),
    ):
        second = stateful(cache, 0, False, **other)
        second.load_state_dict(copy.deepcopy(state))
        with pytest.raises(UsageError, match=said):
            next(iter(second))
