"""Several processes that train one model: real ones, with a gloo process group."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import shardcache
from shardcache import Cache, CachedDataset, UsageError
from tests.training.conftest import CacheOf
from tests.training.processes import job, together
from tests.training.trainer import GLOBAL_BATCH, loaders

UNEVEN = 1003  # samples: with batches of 16 on three ranks, 43 are left


@pytest.fixture(scope="module")
def cache(numbers_of: CacheOf) -> Cache:
    return numbers_of(UNEVEN)


def epochs_of_a_rank(path: str, workers: int, options: dict[str, Any]) -> Any:
    """(length, batches as (indices, valid)) of two epochs, and (rank, world size) as the dataset sees them."""
    ds = CachedDataset(path, **{"batch_size": 16, "shuffle": True, "with_meta": True, "shuffle_buffer": 100, **options})
    loader = ds.loader(num_workers=workers)
    epochs = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        epochs.append([(meta.index.tolist(), meta.valid.tolist()) for _, meta in loader])
    return len(loader), epochs, tuple(ds._ranks)


@pytest.mark.parametrize(("world_size", "workers"), [(2, 2), (3, 0)])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_all_ranks_get_the_same_number_of_batches_and_every_sample_comes_once(
    cache: Cache, tmp_path: Path, world_size: int, workers: int, remainder: str
) -> None:
    options = {"remainder": remainder}
    found = job(epochs_of_a_rank, world_size, tmp_path / "job", str(cache.path), workers, options)
    whole, rest = divmod(UNEVEN, 16 * world_size)
    steps = whole + (remainder == "pad" and rest > 0)
    assert [ranks for _, _, ranks in found] == [(rank, world_size) for rank in range(world_size)]
    assert [length for length, _, _ in found] == [steps] * world_size
    for epoch in (0, 1):
        batches = [epochs[epoch] for _, epochs, _ in found]
        assert [len(rank) for rank in batches] == [steps] * world_size
        rows = [row for rank in batches for index, valid in rank for row in zip(index, valid, strict=True)]
        assert len(rows) == steps * 16 * world_size
        seen = sorted(index for index, is_valid in rows if is_valid)
        if remainder == "pad":
            assert seen == list(range(UNEVEN))
        else:
            assert len(set(seen)) == len(seen) == whole * 16 * world_size
    assert found[0][1][0] != found[0][1][1]


def ranks_of_this_process(path: str, environment: dict[str, str], given: dict[str, int]) -> tuple[int, int]:
    import os

    os.environ.update(environment)
    return tuple(CachedDataset(path, batch_size=4, **given)._ranks)


def test_the_rank_is_what_was_given_else_the_process_groups_else_the_environments(cache: Cache, tmp_path: Path) -> None:
    path, environment = str(cache.path), {"RANK": "3", "WORLD_SIZE": "5"}
    given = {"rank": 1, "world_size": 7}
    assert job(ranks_of_this_process, 2, tmp_path / "first", path, environment, given) == [(1, 7)] * 2
    assert job(ranks_of_this_process, 2, tmp_path / "second", path, environment, {}) == [(0, 2), (1, 2)]
    alone = [(ranks_of_this_process, path, environment, given), (ranks_of_this_process, path, environment, {})]
    alone.append((ranks_of_this_process, path, {}, {}))
    assert together(_call, alone) == [(1, 7), (3, 5), (0, 1)]


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def made_too_early(rendezvous: str, rank: int, path: str, given: dict[str, int], workers: int) -> str:
    """What is said of a dataset that was made before the process group."""
    ds = CachedDataset(path, batch_size=4, order="stored", **given)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        for loader in (ds.loader(num_workers=workers), DataLoader(ds, batch_size=None, num_workers=workers)):
            next(iter(loader))
    except UsageError as error:
        return str(error)
    finally:
        torch.distributed.destroy_process_group()
    return "nothing"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_was_made_before_the_process_group_says_so(cache: Cache, tmp_path: Path, workers: int) -> None:
    for given, expected in (
        ({}, "make the dataset after the process group"),
        ({"rank": 0, "world_size": 1}, "nothing"),
    ):
        arguments = (str(cache.path), given, workers)
        calls = [(_call, made_too_early, str(tmp_path / expected), rank, *arguments) for rank in range(2)]
        said = together(_call, calls)
        assert all(expected in text for text in said), said
        if not given:
            assert "made for rank 0 of 1, but this process is rank 1 of 2 now" in said[1]


def test_ranks_that_make_no_sense_are_errors(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"rank": 0}, {"world_size": 2}):
        with pytest.raises(UsageError, match="give both or neither"):
            CachedDataset(cache, batch_size=4, **wrong)
    with pytest.raises(UsageError, match=r"rank must be 0\.\.1 in a world of size 2, was 2"):
        CachedDataset(cache, batch_size=4, rank=2, world_size=2)
    monkeypatch.setenv("RANK", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="must be integers, were 'one', '2'"):
        CachedDataset(cache, batch_size=4)


def global_batches(path: str, workers: int, options: dict[str, Any]) -> list[list[int]]:
    """Batches of this rank, gathered with those of the others."""
    ds = CachedDataset(path, global_batch_size=GLOBAL_BATCH, canonical_ranks=4, shuffle=True, **options)
    found = []
    for index, _ in ds.loader(num_workers=workers):
        parts = [torch.empty_like(index) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, index.clone())
        found.append(torch.cat(parts).tolist())
    return found


@pytest.mark.parametrize("options", [{"shuffle_buffer": 100}, {"drop_last": True}], ids=["buffer", "permuted"])
def test_global_batches_are_the_same_for_every_world_size_that_divides_the_canonical_ranks(
    cache: Cache, tmp_path: Path, options: dict[str, Any]
) -> None:
    (alone,) = loaders(cache, 1, 0, seed=0, **options)
    expected = [index.tolist() for index, _ in alone]
    for world_size, workers in ((1, 2), (2, 3), (4, 0)):
        found = job(global_batches, world_size, tmp_path / f"{world_size}", str(cache.path), workers, options)
        assert found == [expected] * world_size


def test_a_world_size_that_does_not_divide_them_is_warned_of_and_still_gives_every_sample_once(cache: Cache) -> None:
    def dataset(rank: int) -> CachedDataset:
        options = {"order": "stored", "canonical_ranks": 4, "with_meta": True}
        return CachedDataset(cache, batch_size=16, rank=rank, world_size=3, **options)

    with pytest.warns(shardcache.ShardCacheWarning, match="other batches than on 1, 2 or 4 ranks"):
        metas = [meta for rank in range(3) for _, meta in dataset(rank)]
    assert sorted(index for meta in metas for index in meta.index[meta.valid].tolist()) == list(range(UNEVEN))


def train(path: str, remainder: str | None, workers: int) -> tuple[int, float]:
    """A training with DistributedDataParallel, whose backward pass waits for all ranks: (steps, a weight)."""
    ds = CachedDataset(path, batch_size=16, shuffle=True, remainder=remainder)
    loader = ds.loader(num_workers=workers)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    steps = 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        for _, vectors in loader:
            optimizer.zero_grad()
            model(vectors.float()).square().mean().backward()
            optimizer.step()
            steps += 1
    return steps, model.module.weight.sum().item()


@pytest.mark.parametrize(("world_size", "workers"), [(2, 2), (3, 1)])
def test_a_training_on_uneven_data_ends_on_all_ranks_at_the_same_step(
    tmp_path: Path, numbers_of: CacheOf, world_size: int, workers: int
) -> None:
    cache = numbers_of(16 * world_size * 3 + 1)  # of one sample more than whole batches, only one rank can have it
    for remainder, steps in ((None, 8), ("drop", 6)):
        found = job(train, world_size, tmp_path / f"{remainder}", str(cache.path), remainder, workers)
        assert [count for count, _ in found] == [steps] * world_size
        assert len({weight for _, weight in found}) == 1


def test_the_training_of_these_tests_would_hang_if_ranks_had_different_numbers_of_batches(
    tmp_path: Path, numbers_of: CacheOf
) -> None:
    cache = numbers_of(16 * 2 * 3 + 1)
    with pytest.raises(AssertionError, match=r"hangs|raised|died"):
        job(train, 2, tmp_path / "keep", str(cache.path), "keep", 0, timeout=12)


def evaluate(path: str, workers: int) -> list[float]:
    """The mean of all indices and their number, over all ranks."""
    ds = CachedDataset(path, batch_size=16, order="stored", with_meta=True)
    sums = torch.zeros(2, dtype=torch.float64)
    for (index, _), meta in ds.loader(num_workers=workers):
        sums += torch.stack([index[meta.valid].sum(), meta.valid.sum()])
        assert torch.equal(index, meta.index)  # rows that fill up have their real index
    torch.distributed.all_reduce(sums)
    return [(sums[0] / sums[1]).item(), sums[1].item()]


def test_a_padded_evaluation_counts_every_sample_once(cache: Cache, tmp_path: Path) -> None:
    expected = [(UNEVEN - 1) / 2, UNEVEN]
    assert job(evaluate, 3, tmp_path / "job", str(cache.path), 2) == [expected] * 3


def test_keep_gives_ranks_different_numbers_of_batches_only_when_it_is_asked_for(numbers_of: CacheOf) -> None:
    def dataset(rank: int, **options: Any) -> CachedDataset:
        return CachedDataset(cache, batch_size=16, rank=rank, world_size=2, order="stored", **options)

    cache = numbers_of(16 * 2 * 3 + 1)
    lengths = [len(list(dataset(rank, remainder="keep"))) for rank in range(2)]
    assert lengths == [len(dataset(rank, remainder="keep")) for rank in range(2)]
    assert sorted(lengths) == [3, 4]
    assert [len(list(dataset(rank))) for rank in range(2)] == [4, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 4, "drop_last": True, "remainder": "pad"}, "drop_last=True contradicts remainder='pad'"),
        ({"batch_size": 4, "global_batch_size": 9}, "contradicts global_batch_size=9"),
        ({"global_batch_size": 9}, "must be a multiple of the world size"),
        ({"batch_size": 3, "canonical_ranks": 4}, "must be a multiple of canonical_ranks"),
        ({"batch_size": 4, "remainder": "leave"}, "must be 'drop', 'pad' or 'keep'"),
        ({"batch_size": 0}, "batch_size must be an int of 1 or more"),
        ({"batch_size": 4, "canonical_ranks": 0}, "canonical_ranks must be an int of 1 or more"),
    ],
)
def test_arguments_that_contradict_each_other_are_errors(cache: Cache, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CachedDataset(cache, rank=0, world_size=2, **options)


def test_the_same_job_resumes_on_half_as_many_ranks(cache: Cache, tmp_path: Path) -> None:
    (alone,) = loaders(cache, 1, 0, seed=0)
    expected = [index.tolist() for index, _ in alone]
    (states,) = {tuple(found) for found in job(state_after, 4, tmp_path / "four", str(cache.path), 10)}
    found = job(rest_after, 2, tmp_path / "two", str(cache.path), dict(states))
    assert found == [expected[10:]] * 2


def state_after(path: str, steps: int) -> list[tuple[str, Any]]:
    ds = CachedDataset(path, global_batch_size=GLOBAL_BATCH, canonical_ranks=4, shuffle=True)
    loader = ds.loader(num_workers=2)
    for _ in itertools.islice(loader, steps):
        pass
    return sorted(loader.state_dict().items())


def rest_after(path: str, state: dict[str, Any]) -> list[list[int]]:
    ds = CachedDataset(path, global_batch_size=GLOBAL_BATCH, canonical_ranks=4, shuffle=True)
    loader = ds.loader(num_workers=1)
    loader.load_state_dict(state)
    found = []
    for index, _ in loader:
        parts = [torch.empty_like(index) for _ in range(2)]
        torch.distributed.all_gather(parts, index.clone())
        found.append(torch.cat(parts).tolist())
    return found
