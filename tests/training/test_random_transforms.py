"""Transforms that draw from global generators, as torchvision's do: the same for every number of workers."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shardcache import Cache, CachedDataset
from tests.training.conftest import CacheOf

SIZE = 300


@pytest.fixture(scope="module")
def cache(numbers_of: CacheOf) -> Cache:
    return numbers_of(SIZE)


class RandomFlip(nn.Module):
    """As torchvision's are: a module whose call draws from torch's generator."""

    def forward(self, vector: Tensor) -> Tensor:
        return vector.flip(0).float() * torch.rand(()) if torch.rand(1) < 0.5 else vector + torch.randn(8)


def with_numpy(vector: Tensor) -> Tensor:
    return vector + torch.from_numpy(np.random.rand(8)) + np.random.randint(5)


def with_python(vector: Tensor) -> Tensor:
    return vector * random.random() + random.choice([1, 2, 3]) + random.gauss(0, 1)


class Compose:
    def __init__(self, *transforms: Callable[[Any], Any]) -> None:
        self.transforms = transforms

    def __call__(self, vector: Any) -> Any:
        for transform in self.transforms:
            vector = transform(vector)
        return vector


AUGMENT = Compose(RandomFlip(), with_numpy, with_python)


def of_sample(sample: Any) -> Any:
    index, vector = sample
    return index, AUGMENT(vector)


def of_batch(batch: Any) -> Any:
    index, vectors = batch
    return index, vectors + torch.rand(vectors.shape) + np.random.rand() + random.random()


KINDS: dict[str, dict[str, Any]] = {
    "by column": {"transform": {1: AUGMENT}},
    "of samples": {"transform": of_sample},
    "of batches": {"batch_transform": of_batch},
    "both": {"transform": of_sample, "batch_transform": of_batch},
    "samples": {"transform": of_sample, "batch_size": None},
}


def loader(cache: Cache, workers: int = 0, **options: Any) -> Any:
    options = {"batch_size": 16, "shuffle": True, "shuffle_buffer": 40, "seed": 1, **options}
    return CachedDataset(cache, **options).loader(num_workers=workers, persistent_workers=workers > 1)


def epoch_of(loader: Any, epoch: int) -> dict[int, list[float]]:
    """What became of each sample."""
    loader.set_epoch(epoch)
    found: dict[int, list[float]] = {}
    for index, vectors in loader:
        pairs = [(index, vectors)] if isinstance(index, int) else zip(index.tolist(), vectors, strict=True)
        found |= {number: vector.tolist() for number, vector in pairs}
    assert len(found) == SIZE
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_for_every_number_of_workers(cache: Cache, kind: str) -> None:
    alone = loader(cache, **KINDS[kind])
    expected = [epoch_of(alone, epoch) for epoch in range(2)]
    for workers in (1, 2, 3):
        several = loader(cache, workers, **KINDS[kind])
        assert [epoch_of(several, epoch) for epoch in range(2)] == expected


def test_a_sample_is_the_same_in_any_order_and_batch(cache: Cache) -> None:
    expected = epoch_of(loader(cache, **KINDS["of samples"]), 3)
    for options in ({"order": "stored", "shuffle": False}, {"batch_size": 50}, {"shuffle_buffer": None}):
        assert epoch_of(loader(cache, 2, **KINDS["of samples"], **options), 3) == expected


def test_it_differs_from_sample_to_sample_from_epoch_to_epoch_and_with_the_seed(cache: Cache) -> None:
    def draws(seed: int, epoch: int) -> dict[int, list[float]]:
        return epoch_of(loader(cache, seed=seed, transform=draw), epoch)

    first = draws(1, 0)
    assert len({tuple(drawn) for drawn in first.values()}) == SIZE
    for other in (draws(1, 1), draws(2, 0)):
        assert not [index for index in first if first[index] == other[index]]


def draw(sample: Any) -> Any:
    return sample[0], torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64)


def test_what_is_drawn_is_uniform(cache: Cache) -> None:
    drawn = np.array(list(epoch_of(loader(cache, transform=draw), 0).values()))
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.08
    assert np.abs(drawn.std(0) - 12**-0.5).max() < 0.04
    correlations = np.corrcoef(drawn.T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.25


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_same_augmentations(cache: Cache, workers: int) -> None:
    def batches(loader: Any) -> list[Any]:
        return [(index.tolist(), vectors.tolist()) for index, vectors in loader]

    whole = batches(loader(cache, **KINDS["both"]))
    again = loader(cache, workers, **KINDS["both"])
    for _ in itertools.islice(again, 7):
        pass
    third = loader(cache, workers, **KINDS["both"])
    third.load_state_dict(again.state_dict())
    assert batches(third) == whole[7:]


def states() -> list[Any]:
    numpys = np.random.get_state()
    return [torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2:], random.getstate()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_process_s_own_generators_are_untouched(cache: Cache, kind: str, workers: int) -> None:
    torch.manual_seed(3)
    np.random.seed(4)
    random.seed(5)
    batches = iter(loader(cache, workers, **KINDS[kind]))
    before = states()
    for _ in itertools.islice(batches, 5):
        assert states() == before
    dropout = [torch.rand(()).item(), np.random.rand(), random.random()]
    for _ in batches:
        pass
    torch.manual_seed(3)
    np.random.seed(4)
    random.seed(5)
    list(iter(loader(cache, workers)))  # making an iterator of a DataLoader draws a number
    assert [torch.rand(()).item(), np.random.rand(), random.random()] == dropout


def test_a_transform_that_raises_leaves_them_as_they_were_too(cache: Cache) -> None:
    batches = iter(loader(cache, transform=fails))
    before = states()
    with pytest.raises(ZeroDivisionError) as caught:
        list(batches)
    assert states() == before
    assert any("transform of sample" in note for note in caught.value.__notes__)


def fails(sample: Any) -> Any:
    torch.rand(3)
    np.random.rand(3)
    random.random()
    return sample if sample[0] % 7 else 1 / 0
