"""Accelerate: it prepares the model and the optimizer. A loader that it prepares is divided among the ranks again."""

import contextlib
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from shardcache import Cache, CachedDataset, Loader, ShardCacheWarning
from tests.read.sources import numbers
from tests.training.conftest import CacheOf
from tests.training.processes import job
from tests.training.test_resume import epoch_of, loader_of

SIZE = 203


@pytest.fixture(scope="module")
def cache(numbers_of: CacheOf) -> Cache:
    return numbers_of(SIZE)


def launched(**options: Any) -> Accelerator:
    """An accelerator in one process of a job, as ``accelerate launch --cpu`` starts them."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # not used: there is a process group already
    accelerator = Accelerator(cpu=True, **options)
    assert (accelerator.process_index, accelerator.num_processes) == (rank, world_size)
    return accelerator


def loader_for(accelerator: Accelerator, path: str, workers: int, **options: Any) -> Loader:
    ds = CachedDataset(
        path,
        batch_size=16,
        shuffle=True,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        with_meta=True,
        **options,
    )
    return ds.loader(num_workers=workers)


def train(path: str, workers: int, folder: str) -> tuple[int, list[int], list[int]]:
    """(Steps, indices of an epoch over all ranks, steps after a state that was saved within it was loaded)."""
    accelerator = launched()
    model = torch.nn.Linear(8, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-8))
    loader = loader_for(accelerator, path, workers)
    accelerator.register_for_checkpointing(loader)
    steps, seen = 0, []
    for (_, vectors), meta in loader:
        accelerator.backward(model(vectors.float()).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        every = accelerator.gather(torch.stack([meta.index, meta.valid.long()], 1))
        seen += every[every[:, 1] == 1, 0].tolist()
        steps += 1
        if steps == 3:
            accelerator.save_state(folder, safe_serialization=False)
    accelerator.load_state(folder)
    return steps, seen, [loader.state_dict()["step"], len(list(loader))]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_whose_loader_is_not_prepared_sees_every_sample_once_and_saves_its_state(
    cache: Cache, tmp_path: Path, workers: int
) -> None:
    found = job(train, 2, tmp_path / "job", str(cache.path), workers, str(tmp_path / "state"))
    for steps, seen, resumed in found:
        assert steps == 7
        assert sorted(seen) == list(range(SIZE))
        assert resumed == [3, 4]


def prepared(path: str, workers: int, dispatch: bool) -> list[str]:
    """The warnings about a loader that was prepared."""
    accelerator = launched(dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = accelerator.prepare(loader_for(accelerator, path, workers, remainder="drop"))
        # A loader without a batch size is more than Accelerate's way of not dispatching can do.
        refusal = contextlib.nullcontext() if dispatch else contextlib.suppress(TypeError)
        with refusal:
            list(itertools.islice(loader, 2))
    return [str(warning.message) for warning in caught if warning.category is ShardCacheWarning]


@pytest.mark.parametrize("dispatch", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_prepared_is_warned_of_once_on_every_rank(
    cache: Cache, tmp_path: Path, workers: int, dispatch: bool
) -> None:
    for said in job(prepared, 2, tmp_path / "job", str(cache.path), workers, dispatch):
        assert len(said) == 1
        assert "already gives each of 2 ranks its own" in said[0]
        assert "Prepare the model and the optimizer, not the loader" in said[0]


def test_in_one_process_a_prepared_loader_gives_the_same_batches(cache: Cache) -> None:
    expected = [epoch_of(loader_of(cache, batch_size=16), epoch) for epoch in range(2)]
    loader = loader_of(cache, batch_size=16)
    loader.set_epoch(7)
    for _ in loader:  # somebody looks at a batch before
        break
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(loader)
    assert [numbers(prepared), numbers(prepared)] == expected
    accelerator.free_memory()
