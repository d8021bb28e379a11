"""A reader keeps its snapshot, and others can tell that it has one."""

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import shardcache
from shardcache import CachedDataset, CacheError
from shardcache.read.hold import is_held
from tests.read.sources import Numbers, load, numbers


class Other(Numbers):
    def __getitem__(self, index):
        return index + 10**6, torch.zeros(8, dtype=torch.int32)


@pytest.fixture
def path(tmp_path) -> Path:
    build(Numbers(3000), tmp_path / "cache")
    return tmp_path / "cache"


def build(dataset, path: Path, **options):
    """With many shards, of which a reader has opened few."""
    return shardcache.build(dataset, path, codec="none", block_bytes=1000, progress=False, **options)


def replace(path: Path) -> None:
    build(Other(3000), path, if_exists="replace")


class TestTheSnapshot:
    def test_a_cache_that_is_replaced_is_read_on_as_it_was(self, path):
        cache = shardcache.open(path)
        assert cache[0][0] == 0
        replace(path)
        assert [cache[index][0] for index in range(0, 3000, 7)] == list(range(0, 3000, 7))
        assert [cache.select([5, 2999])[k][0] for k in range(2)] == [5, 2999]
        assert shardcache.open(path)[7][0] == 10**6 + 7

    @pytest.mark.filterwarnings("ignore:epoch .* is iterated a second time")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_no_epoch_mixes_two_caches(self, path, method):
        data = CachedDataset(path, batch_size=16, order="shuffled", shuffle_buffer=40, epochs=2)
        loader = load(data, 2, multiprocessing_context=method, persistent_workers=True)
        first = numbers(loader)
        replace(path)
        assert numbers(loader) == first
        assert numbers(load(data, 2, multiprocessing_context=method)) == first  # by workers that are started now

    def test_a_pickled_cache_that_nobody_held_is_refused(self, path):
        pickled = pickle.dumps(shardcache.open(path))
        replace(path)
        with pytest.raises(CacheError, match="another cache is here now"):
            pickle.loads(pickled)

    def test_what_was_replaced_goes_when_nobody_holds_it(self, path):
        cache = shardcache.open(path)
        replace(path)
        assert len(list(path.parent.glob("cache.replaced-*"))) == 1
        del cache
        replace(path)
        assert [entry.name for entry in path.parent.iterdir()] == ["cache"]


class TestTheLock:
    def test_is_there_as_long_as_a_cache_or_a_view_of_it(self, path):
        assert not is_held(path)
        cache = shardcache.open(path)
        view = cache.select([1, 2])
        del cache
        assert is_held(path)
        del view
        assert not is_held(path)

    def test_is_held_by_forked_and_spawned_processes_and_ends_with_them(self, path):
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            ready = context.Event()
            child = context.Process(target=hold_for_ever, args=(pickle.dumps(shardcache.open(path)), ready))
            child.start()
            assert ready.wait(60)
            assert is_held(path)
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            assert not is_held(path)

    def test_a_reader_writes_nothing(self, path):
        before = {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()}
        assert len(shardcache.open(path)) == 3000
        assert {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()} == before

    def test_what_is_no_cache_is_held_by_nobody(self, tmp_path):
        assert not is_held(tmp_path)
        assert not is_held(tmp_path / "absent")


def test_caches_that_are_dropped_leave_no_descriptor(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        shardcache.open(path)
    assert len(os.listdir("/proc/self/fd")) <= before
    shutil.rmtree(path)


def hold_for_ever(pickled: bytes, ready) -> None:
    cache = pickle.loads(pickled)
    ready.set()
    time.sleep(600)
    del cache
