"""Transforms: what they are given, what they draw, what becomes of what they raise."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shardcache import Cache, CachedDataset, SampleError, UsageError
from shardcache.read.transforms import seed_global_generators
from tests.read.sources import close, exhaust, load

CacheOf = Callable[..., Cache]


def dataset(cache_of: CacheOf, **options: Any) -> CachedDataset:
    return CachedDataset(cache_of("numbers"), **{"batch_size": 20, "shuffle": True, "shuffle_buffer": 40, **options})


def with_rng(sample: Any, rng: np.random.Generator) -> Any:
    return sample[0], rng.integers(2**62)


def with_globals(sample: Any) -> Any:
    draws = torch.randint(2**31, ()), np.random.randint(2**31), random.getrandbits(31)
    return sample[0], torch.tensor([int(draw) for draw in draws])


def negated(value: Any) -> Any:
    return -value


def jittered(value: Any, rng: np.random.Generator) -> Any:
    return value + rng.random()


def noisy_batch(batch: Any, rng: np.random.Generator) -> Any:
    return batch[0], torch.from_numpy(rng.integers(2**62, size=len(batch[0])))


def by_sample(batches: Any) -> dict[int, Any]:
    return {
        index: np.asarray(drawn).tolist()
        for indices, draws in batches
        for index, drawn in zip(indices.tolist(), draws.tolist(), strict=True)
    }


class TestWhatTheyAreGiven:
    def test_one_callable_is_for_samples(self, cache_of: CacheOf) -> None:
        for index, twice in load(dataset(cache_of, transform=lambda sample: (sample[0], 2 * sample[0])), 2):
            assert index.dtype is torch.int64
            assert torch.equal(twice, 2 * index)

    def test_a_dict_is_by_column_and_leaves_the_others_alone(self, cache_of: CacheOf) -> None:
        for names in ({"0": negated}, {0: negated}):
            for index, vectors in dataset(cache_of, transform=names):
                assert torch.equal(-index, vectors[:, 0].long())
                assert vectors.dtype is torch.int32

    def test_what_they_return_decides_about_the_batch(self, cache_of: CacheOf) -> None:
        transform: Any = {"0": str, "1": lambda value: value.float().mean()}
        text, mean = next(iter(dataset(cache_of, transform=transform)))
        assert all(type(value) is str for value in text)
        assert mean.dtype is torch.float32
        assert [float(value) for value in text] == mean.tolist()

    def test_a_sample_may_become_anything(self, cache_of: CacheOf) -> None:
        def changed(sample: Any) -> Any:
            return {"id": sample[0], "pair": (sample[1], [str(sample[0])]), "flag": sample[0] > 500}

        batch = next(iter(dataset(cache_of, transform=changed)))
        assert list(batch) == ["id", "pair", "flag"]
        assert batch["flag"].dtype is torch.bool
        assert batch["pair"][0].shape == (20, 8)
        assert batch["pair"][1] == [[str(number)] for number in batch["id"].tolist()]

    def test_of_single_samples(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, batch_size=None, transform=lambda sample: sample[0] + 5000)
        assert sorted(data) == list(range(5000, 6000))

    def test_a_batch_transform_comes_last(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, transform={"0": negated}, batch_transform=lambda batch: batch[0].sum(), with_meta=True)
        for total, meta in data:
            assert total == -meta.index.sum()

    def test_collate_fn_is_given_the_transformed_samples(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, transform=lambda sample: sample[0], collate_fn=sorted)
        found = list(load(data, 2))
        assert all(type(batch) is list and batch == sorted(batch) for batch in found)
        assert sorted(sum(found, [])) == list(range(1000))  # noqa: RUF017

    def test_they_may_change_what_they_are_given(self, cache_of: CacheOf) -> None:
        def destroy(value: torch.Tensor) -> torch.Tensor:
            return value.zero_()

        for epoch in range(2):
            data = dataset(cache_of, transform={"1": destroy}, shuffle_buffer=None)
            data.set_epoch(epoch)
            exhaust(load(data))
        for index, vectors in dataset(cache_of, shuffle_buffer=None):
            assert torch.equal(index, vectors[:, 0].long())

    @pytest.mark.parametrize(
        "options",
        [{"transform": 3}, {"transform": {"0": None}}, {"batch_transform": "x"}, {"collate_fn": {}}],
        ids=str,
    )
    def test_what_cannot_be_called_is_refused_at_once(self, cache_of: CacheOf, options: Any) -> None:
        with pytest.raises(UsageError, match="must be callable"):
            dataset(cache_of, **options)

    def test_a_column_that_is_not_there_is_refused_at_once(self, cache_of: CacheOf) -> None:
        with pytest.raises(UsageError, match=r"transform for 'label': there is no such column; the columns are 0, 1"):
            dataset(cache_of, transform={"label": negated})

    @pytest.mark.parametrize("option", ["collate_fn", "batch_transform"])
    def test_what_is_for_batches_needs_a_batch_size(self, cache_of: CacheOf, option: str) -> None:
        with pytest.raises(UsageError, match=f"{option} needs batch_size"):
            dataset(cache_of, batch_size=None, **{option: list})


class TestRandomness:
    @pytest.mark.parametrize(
        ("transform", "workers", "method"),
        [(with_rng, 1, "fork"), (with_rng, 3, "fork"), (with_globals, 3, "fork"), (with_globals, 1, "spawn")],
    )
    def test_is_the_same_for_any_number_of_workers(
        self, cache_of: CacheOf, transform: Any, workers: int, method: str
    ) -> None:
        expected = by_sample(dataset(cache_of, transform=transform))
        loader = load(dataset(cache_of, transform=transform), workers, multiprocessing_context=method)
        assert by_sample(loader) == expected
        assert len({str(drawn) for drawn in expected.values()}) == 1000

    @pytest.mark.parametrize("transform", [with_rng, with_globals])
    def test_belongs_to_the_sample_whatever_batch_it_is_in(self, cache_of: CacheOf, transform: Any) -> None:
        expected = by_sample(dataset(cache_of, transform=transform))
        for options in ({"batch_size": 7}, {"shuffle_buffer": None}, {"shuffle": False, "order": "stored"}):
            assert by_sample(dataset(cache_of, transform=transform, **options)) == expected

    @pytest.mark.parametrize("transform", [with_rng, with_globals])
    def test_differs_with_seed_and_epoch(self, cache_of: CacheOf, transform: Any) -> None:
        drawn = []
        for seed in (0, 1, 2):
            for epoch in (0, 1, 2):
                data = dataset(cache_of, transform=transform, seed=seed)
                data.set_epoch(epoch)
                drawn.append(str(by_sample(data)[77]))
        assert len(set(drawn)) == 9

    def test_of_two_columns_is_not_the_same(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, transform={"0": jittered, "1": jittered})
        for first, second in data:
            assert not np.isclose(first % 1, second[:, 0] % 1).all()

    def test_of_a_batch_belongs_to_its_step(self, cache_of: CacheOf) -> None:
        expected = by_sample(dataset(cache_of, batch_transform=noisy_batch))
        assert by_sample(load(dataset(cache_of, batch_transform=noisy_batch), 3)) == expected
        assert len({str(drawn) for drawn in expected.values()}) == 1000

    @pytest.mark.parametrize("options", [{"transform": with_globals}, {"transform": {"0": negated}}, {}])
    def test_the_training_process_draws_what_it_would_have_drawn(self, cache_of: CacheOf, options: Any) -> None:
        def draws() -> list[float]:
            return [torch.rand(()).item(), np.random.rand(), random.random()]

        seed_global_generators(1)
        expected = [draws() for _ in range(10)]
        seed_global_generators(1)
        found = []
        for _, _ in zip(range(10), dataset(cache_of, **options), strict=False):
            found.append(draws())
        assert found == expected

    def test_the_training_process_keeps_its_state_when_a_transform_raises(self, cache_of: CacheOf) -> None:
        seed_global_generators(1)
        expected = torch.rand(()), random.random()
        seed_global_generators(1)
        with pytest.raises(ZeroDivisionError):
            list(dataset(cache_of, transform=lambda sample: torch.rand(()).item() / (sample[0] * 0)))
        assert (torch.rand(()), random.random()) == expected


class TwoArgumentsError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


class QuietError(Exception):
    """Its constructor takes anything and keeps it to itself."""

    def __init__(self, *details: Any) -> None:
        super().__init__()
        self.details = details

    def __str__(self) -> str:
        return "long story"


class OtherNameError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(f"<{message}>")


class Failing:
    """Raises for sample 700."""

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    def __call__(self, sample: Any) -> Any:
        if (sample[0] if isinstance(sample, tuple) else sample) == 700:
            raise self.make()
        return sample


OWN = [ValueError("bad pixel"), KeyError("name"), ZeroDivisionError(), OSError(5, "i/o"), OtherNameError("bad")]


class TestErrors:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
    def test_reach_the_user_as_their_own_type_with_the_index_of_the_sample(
        self, cache_of: CacheOf, error: Exception, workers: int
    ) -> None:
        for options in ({}, {"batch_size": None}):
            with pytest.raises(type(error)) as caught:
                exhaust(load(dataset(cache_of, transform=Failing(lambda: error), **options), workers))
            text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
            assert "transform of sample 700" in text
            if workers:
                assert repr(str(error))[1:-1] in text
                assert "test_transforms.py" in text

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize(
        "make",
        [
            lambda: TwoArgumentsError(7, "long story"),
            lambda: UnicodeDecodeError("utf-8", b"ab", 0, 1, "long story"),
            lambda: StopIteration("long story"),
            lambda: QuietError("long story"),
        ],
        ids=["two arguments", "five arguments", "StopIteration", "a constructor that forgets"],
    )
    def test_that_cannot_be_rebuilt_from_text_are_sample_errors_with_the_whole_text(
        self, cache_of: CacheOf, make: Any, workers: int
    ) -> None:
        for options in ({}, {"batch_size": None}):
            with pytest.raises(SampleError, match=r"transform of sample 700 raised .*long story"):
                exhaust(load(dataset(cache_of, transform=Failing(make), **options), workers))

    def test_of_a_column_name_it(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, transform={"0": Failing(lambda: ValueError("bad"))})
        with pytest.raises(ValueError, match="bad") as caught:
            exhaust(load(data))
        assert "transform['0'] of sample 700" in caught.value.__notes__[0]

    @pytest.mark.parametrize("option", ["batch_transform", "collate_fn"])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_batch_say_where_they_come_from(self, cache_of: CacheOf, option: str, workers: int) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            exhaust(load(dataset(cache_of, **{option: lambda batch: 1 // 0}), workers))
        assert option in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("batch_size", [None, 20])
    def test_come_again_and_never_make_an_epoch_shorter(
        self, cache_of: CacheOf, batch_size: int | None, workers: int
    ) -> None:
        for make in (lambda: ValueError("bad"), lambda: StopIteration()):
            data = dataset(cache_of, batch_size=batch_size, transform=Failing(make))
            batches = iter(data.loader(workers))
            errors = 0
            for _ in range(400 if batch_size else 1500):
                try:
                    next(batches)
                except (ValueError, SampleError):
                    errors += 1
            assert errors > 20
            close(batches)

    def test_in_samples_of_different_shapes_say_what_to_write(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of, transform={"1": lambda value: value[: int(value[0]) % 8]})
        with pytest.raises(UsageError, match=r"column '1': .*collate=\{'1': 'list'\} or 'pad'"):
            exhaust(load(data, 2))
