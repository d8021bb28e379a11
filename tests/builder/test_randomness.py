"""A dataset that is random is refused: a cache would freeze one draw of it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardcache
from shardcache import RandomSourceError
from tests.builder.conftest import digests, files
from tests.builder.sources import Made

GENERATORS = {
    "random": lambda: random.random(),
    "numpy": lambda: np.random.rand(3),
    "torch": lambda: torch.rand(2),
    "its own": lambda: np.random.default_rng().integers(1 << 40),
    "now and then": lambda: random.random() < 0.5,
}


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"progress": False, **options})


def states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_drawn_anew_for_each_read_is_refused_with_the_columns_and_the_remedy(draw, num_workers, tmp_path):
    dataset = Made(100, lambda i: {"label": i, "crop": draw(), "meta": {"path": str(i)}})
    with pytest.raises(RandomSourceError, match=r"column 'crop' differed: .*transform=.*allow_random=True") as caught:
        build(dataset, tmp_path / "c", num_workers=num_workers)
    assert caught.value.exit_code == 3
    assert files(tmp_path) == []
    assert shardcache.estimate(dataset).random == ("crop",)


def test_several_random_columns_are_all_named(tmp_path):
    dataset = Made(50, lambda i: (torch.rand(2), i, [random.random()] * 40))
    with pytest.raises(RandomSourceError, match="columns '0', '2' differed"):
        build(dataset, tmp_path / "c")
    with pytest.raises(RandomSourceError, match="column 'sample' differed"):
        build(Made(50, lambda i: random.random()), tmp_path / "c")


def test_a_dataset_that_changes_what_it_gave_is_noticed(tmp_path):
    arrays = [np.zeros(4) for _ in range(20)]

    def add_noise(index: int) -> Any:
        arrays[index] += np.random.rand(4)
        return arrays[index]

    with pytest.raises(RandomSourceError):
        build(Made(20, add_noise), tmp_path / "c")


def test_allow_random_stores_one_draw(tmp_path):
    cache = build(Made(100, lambda i: (i, random.random())), tmp_path / "c", allow_random=True)
    assert [sample[0] for sample in cache] == list(range(100))
    assert cache[3] == cache[3]


def test_values_are_compared_to_the_bit_and_nan_is_itself(tmp_path):
    payload = np.array([0x7FF80000DEADBEEF], np.uint64).view(np.float64)
    assert len(build(Made(50, lambda i: (float("nan"), payload.copy(), None)), tmp_path / "same")) == 50
    zeros = iter([0.0, -0.0] * 1000)
    with pytest.raises(RandomSourceError):
        build(Made(50, lambda i: next(zeros) if i == 0 else 1.0), tmp_path / "zero")


def test_random_numbers_that_belong_to_the_sample_are_no_randomness(tmp_path):
    def seeded(index: int) -> Any:
        torch.manual_seed(index)
        return torch.rand(3)

    assert len(build(Made(50, seeded), tmp_path / "c")) == 50


def test_looking_twice_does_not_disturb_the_generators_of_the_process(tmp_path):
    before = states()
    dataset = Made(100, lambda i: (random.random(), torch.rand(1), np.random.rand()))
    shardcache.estimate(dataset)
    assert states() == before
    seed()
    for _ in range(100):
        dataset.make(0)
    drawn = states()
    seed()
    read = sum(dataset.reads.values())
    build(dataset, tmp_path / "c", allow_random=True)
    assert sum(dataset.reads.values()) - read > 100
    assert states() == drawn  # as if each sample had been read once


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_the_second_reading_does_not_change_the_bytes(tmp_path):
    for name, allowed in (("a", False), ("b", True)):
        build(Made(100, lambda i: np.full(50, i)), tmp_path / name, allow_random=allowed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
