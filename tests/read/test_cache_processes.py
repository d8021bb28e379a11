"""A cache among processes and threads: before and after a fork, spawned, shared, read-only, for a long time."""

import gc
import multiprocessing
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardcache
from shardcache import Cache, CachedDataset, CacheError
from tests.read.sources import SOURCES, Numbers, assert_same, load, numbers

CacheOf = Callable[..., Cache]


def read(cache: Cache, results: Any) -> None:
    """In another process: what comes out of some places."""
    results.put([cache[index][0] for index in (0, 999, 500, -1)])


def whole(cache: Cache) -> list[int]:
    return [index for index, _ in cache[list(range(len(cache)))]]


class TestProcesses:
    @pytest.mark.parametrize(
        ("method", "used"), [("fork", False), ("fork", True), ("spawn", True), ("forkserver", True)]
    )
    def test_a_cache_goes_to_another_process(self, cache_of: CacheOf, method: str, used: bool) -> None:
        cache = shardcache.open(cache_of("numbers").path)
        if used:
            assert cache[5][0] == 5
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        process = context.Process(target=read, args=(cache, results))
        process.start()
        assert results.get() == [0, 999, 500, 999]
        process.join(60)
        assert process.exitcode == 0
        assert cache[6][0] == 6

    def test_both_sides_of_a_fork_go_on_reading(self, cache_of: CacheOf) -> None:
        cache = cache_of("numbers")
        first = next(iterator := iter(cache))
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        children = [context.Process(target=read, args=(cache, results)) for _ in range(3)]
        for child in children:
            child.start()
        assert [first[0], *(index for index, _ in iterator)] == list(range(1000))
        for child in children:
            assert results.get() == [0, 999, 500, 999]
            child.join(60)

    def test_eight_threads_at_once(self, cache_of: CacheOf) -> None:
        cache = shardcache.open(cache_of("texts").path)
        wrong: list[Any] = []

        def run(number: int) -> None:
            try:
                for step in range(120):
                    index = (number * 31 + step * 7) % len(cache)
                    assert_same(cache[index], SOURCES["texts"][index])
                assert len(cache[[number, 3, number]]) == 3
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong

    def test_eight_threads_with_a_dataset_each(self, cache_of: CacheOf) -> None:
        cache = cache_of("numbers")
        found: list[Any] = [None] * 8

        def run(number: int) -> None:
            found[number] = numbers(CachedDataset(cache, batch_size=25, shuffle=True, shuffle_buffer=40))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == [found[0]] * 8
        assert found[0] is not None


class TestPickling:
    def test_is_by_path_and_small(self, cache_of: CacheOf) -> None:
        cache = cache_of("numbers")
        assert cache[3][0] == 3
        data = pickle.dumps(cache)
        assert len(data) < 1000
        assert whole(pickle.loads(data)) == list(range(1000))

    def test_a_cache_that_was_replaced_meanwhile_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "cache"
        data = pickle.dumps(shardcache.build(Numbers(50), path, progress=False))
        shardcache.build(Numbers(50), path, seed=1, if_exists="replace", progress=False)
        with pytest.raises(CacheError, match="another cache is here now"):
            pickle.loads(data)

    def test_a_cache_that_is_gone_says_so(self, tmp_path: Path) -> None:
        path = tmp_path / "cache"
        data = pickle.dumps(shardcache.build(Numbers(50), path, progress=False))
        shutil.rmtree(path)
        with pytest.raises(shardcache.CacheNotFoundError, match="not a cache"):
            pickle.loads(data)


def listing(path: Path) -> list[tuple[str, int, int, int]]:
    files = sorted(path.rglob("*"))
    return [
        (file.name, status.st_size, status.st_mtime_ns, status.st_mode) for file in files for status in [file.stat()]
    ]


class TestReadOnly:
    def test_readers_write_nothing_into_a_cache(self, cache_of: CacheOf, tmp_path: Path) -> None:
        path = tmp_path / "cache"
        shutil.copytree(cache_of("numbers").path, path)
        before = listing(path)
        cache = shardcache.open(path)
        assert cache[7][0] == 7
        for workers in (0, 2):
            assert len(numbers(load(CachedDataset(cache, batch_size=50, order="stored"), workers))) == 20
        assert listing(path) == before

    def test_a_directory_that_nobody_may_write_to_is_enough(self, cache_of: CacheOf, tmp_path: Path) -> None:
        path = tmp_path / "cache"
        shutil.copytree(cache_of("numbers").path, path)
        for file in path.iterdir():
            file.chmod(stat.S_IRUSR)
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            cache = shardcache.open(path)
            assert cache[7][0] == 7
            assert len(numbers(load(CachedDataset(cache, batch_size=50, order="stored"), 2))) == 20
        finally:
            path.chmod(stat.S_IRWXU)


LONG = """
import gc, os, sys, threading
import shardcache

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def mappings():
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)

data = shardcache.CachedDataset(sys.argv[1], batch_size=50, shuffle=True, shuffle_buffer=100)
workers, persistent = int(sys.argv[2]), sys.argv[3] == "True"
loader = data.loader(workers, persistent_workers=persistent)
for epoch in range(50):
    loader.set_epoch(epoch)
    assert sum(len(index) for index, _ in loader) == 1000
    if epoch in (15, 49):
        for thread in threading.enumerate()[1:] if not persistent else ():
            thread.join(60)  # torch's, of the queues to workers that have ended: it is they who close them
        gc.collect()
        print(len(os.listdir("/proc/self/fd")), mappings(), resident())
"""


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, True)])
def test_fifty_epochs_leave_no_descriptors_mappings_or_memory_behind(
    cache_of: CacheOf, workers: int, persistent: bool
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LONG, str(cache_of("numbers").path), str(workers), str(persistent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=True)
    early, late = ([int(number) for number in line.split()] for line in done.stdout.splitlines())
    assert late[0] <= early[0]
    assert late[1] <= early[1] + 6
    assert late[2] <= early[2] + (8 << 20)


def test_a_cache_that_is_dropped_is_closed(cache_of: CacheOf, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    shutil.copytree(cache_of("numbers").path, path)
    cache = shardcache.open(path)
    assert whole(cache) == list(range(1000))
    del cache
    shutil.rmtree(path)
    gc.collect()
    assert whole(shardcache.build(Numbers(1000), path, layout="source", progress=False)) == list(range(1000))
