"""Which rank of how many: as given, else from the process group, else from the environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from shardcache import Cache, CachedDataset, UsageError
from shardcache.read import topology

CacheOf = Callable[..., Cache]


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


class TestRanks:
    def test_are_0_of_1_where_nobody_says_anything(self) -> None:
        assert topology.ranks(None, None) == (0, 1)

    def test_are_as_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert topology.ranks(1, 2) == (1, 2)

    def test_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert topology.ranks(None, None) == (3, 4)

    @pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("0", ""), ("1.0", "2")])
    def test_in_the_environment_must_be_numbers(self, monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(UsageError, match="RANK and WORLD_SIZE in the environment must be integers"):
            topology.ranks(None, None)

    @pytest.mark.parametrize("given", [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0), ("0", 2), (0, "2"), (0, 1.5)])
    def test_that_cannot_be_are_refused(self, given: Any) -> None:
        with pytest.raises(UsageError, match=r"rank|world_size"):
            topology.ranks(*given)


class Workers(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield tuple(topology.worker())[:2]


def test_a_worker_knows_its_number_and_how_many_there_are() -> None:
    assert tuple(topology.worker())[:2] == (0, 1)
    assert [tuple(pair) for pair in DataLoader(Workers(), batch_size=None, num_workers=3)] == [(0, 3), (1, 3), (2, 3)]


RANK = """
import json, sys
import torch.distributed as dist
import shardcache

rank, path, rendezvous = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
found = []
for workers in (0, 2):
    data = shardcache.CachedDataset(path, batch_size=16, shuffle=True, shuffle_buffer=40, with_meta=True)
    batches = []
    for (index, _), meta in data.loader(workers):
        dist.barrier()  # hangs where one rank has a batch more
        batches.append([index.tolist(), meta.valid.tolist()])
    assert len(batches) == len(data)
    found.append(batches)
assert found[0] == found[1]
dist.destroy_process_group()
print(json.dumps(found[0]))
"""


def test_ranks_of_a_process_group_share_an_epoch_and_stay_in_step(cache_of: CacheOf, tmp_path: Path) -> None:
    cache = cache_of("numbers")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(cache.path), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        found = [json.loads(rank.communicate(timeout=100)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [len(batches) for batches in found] == [32, 32]
    valid = [
        index
        for batches in found
        for indices, flags in batches
        for index, flag in zip(indices, flags, strict=True)
        if flag
    ]
    assert sorted(valid) == list(range(1000))
    alone = [
        CachedDataset(cache, batch_size=16, shuffle=True, shuffle_buffer=40, rank=rank, world_size=2) for rank in (0, 1)
    ]
    for batches, data in zip(found, alone, strict=True):
        assert [indices for indices, _ in batches] == [index.tolist() for index, _ in data]
