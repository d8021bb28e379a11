"""Leases on shards: how many are open, who shares them, and what threads, forks and replaced files do to them."""

import faulthandler
import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shardcache.errors import DamagedShardError, ShardCacheError, UsageError
from shardcache.format import leases
from shardcache.format.leases import close_all
from shardcache.format.pages import ShardSeal
from tests.format.leasing import lease
from tests.format.test_pages import write_shard
from tests.format.test_shard import in_a_process, key

NAME = "shard 00012"
Shards = list[tuple[Path, ShardSeal]]


@pytest.fixture(params=["mmap", "pread"])
def io(request) -> str:
    return request.param


@pytest.fixture
def shards(tmp_path) -> Iterator[Shards]:
    yield make_shards(tmp_path, 6)
    close_all()


def make_shards(directory: Path, count: int) -> Shards:
    paths = [directory / f"shard-{number}" for number in range(count)]
    return [(path, write_shard(path, [content(path, i) for i in range(40)])) for path in paths]


def content(path: Path, number: int) -> bytes:
    return random.Random(f"{path.name}, {number}").randbytes(20_000 if number % 2 else 50)


def check(path: Path, seal: ShardSeal, *numbers: int, io: str = "mmap") -> None:
    with lease(path, seal, NAME, io) as reader:
        for number in numbers or range(40):
            assert reader.get(key(number)) == content(path, number)


def mapped(directory: Path) -> list[str]:
    """The files under a directory that this process has mapped now, one entry for each mapping."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in maps if f" {directory}/" in line]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestTheRegistry:
    def test_a_shard_is_verified_once_and_stays_open(self, shards, monkeypatch):
        walks = []
        walk = leases.pages.table
        monkeypatch.setattr(leases.pages, "table", lambda *arguments: walks.append(arguments) or walk(*arguments))
        for path, seal in shards * 3:
            check(path, seal)
        assert len(walks) == len(mapped(shards[0][0].parent)) == 6

    def test_no_more_than_128_are_open_and_the_longest_unused_goes_first(self, tmp_path):
        close_all()
        gc.collect()  # what earlier tests have dropped
        before, paths = descriptors(), [tmp_path / f"shard-{number:03d}" for number in range(300)]
        seals = [write_shard(path, [b"x" * 3000, b"y"]) for path in paths]
        for path, seal in zip(paths, seals, strict=True):
            for again, known in (paths[0], seals[0]), (path, seal):
                with lease(again, known, NAME) as reader:
                    assert reader.get(key(1)) == b"y"
            assert len(mapped(tmp_path)) <= leases.MAX_OPEN
        assert sorted(mapped(tmp_path)) == [str(path) for path in [paths[0], *paths[-127:]]]
        assert descriptors() == before + 128
        close_all()
        assert mapped(tmp_path) == []
        assert descriptors() == before

    def test_large_tables_leave_room_for_fewer(self, tmp_path, monkeypatch):
        close_all()
        monkeypatch.setattr(leases, "MAX_TABLE_BYTES", 3 * 40 * 20)
        for path, seal in make_shards(tmp_path, 8):
            check(path, seal)
            assert len(mapped(tmp_path)) <= 3
        assert len(mapped(tmp_path)) == 3
        close_all()

    def test_more_may_be_leased_at_once_and_are_closed_when_they_are_given_back(self, tmp_path, monkeypatch):
        close_all()
        monkeypatch.setattr(leases, "MAX_OPEN", 3)
        shards = make_shards(tmp_path, 8)
        held = [lease(path, seal, NAME).__enter__() for path, seal in shards]
        assert len(mapped(tmp_path)) == 8
        for (path, _), reader in zip(shards, held, strict=True):
            assert reader.get(key(3)) == content(path, 3)
        for reader in held:
            reader.__exit__(None, None, None)
        assert len(mapped(tmp_path)) == 3
        close_all()

    def test_leases_of_a_shard_may_be_nested_and_end_in_any_order(self, shards):
        path, seal = shards[0]
        one, two = lease(path, seal, NAME), lease(path, seal, NAME)
        one.__enter__()
        two.__enter__()
        close_all()
        one.__exit__(None, None, None)
        assert two.get(key(1)) == content(path, 1)
        two.__exit__(None, None, None)
        close_all()
        assert mapped(path.parent) == []

    def test_a_lease_is_entered_once_at_a_time_and_read_only_within(self, shards):
        reader = lease(*shards[0], NAME)
        for _ in range(2):
            with pytest.raises(UsageError, match=f"{NAME}: can be read only within its lease"):
                reader.get(key(1))
            with reader, pytest.raises(UsageError, match=f"{NAME}: this lease is held already"):
                reader.__enter__()

    def test_two_paths_of_one_file_share_it(self, shards):
        path, seal = shards[0]
        other = path.with_name("other")
        other.hardlink_to(path)
        with lease(path, seal, NAME) as reader, lease(other, seal, NAME) as second:
            assert reader.get(key(1)) == second.get(key(1))
            assert len(mapped(path.parent)) == 1

    def test_a_refused_shard_leaves_nothing_open(self, shards):
        path, seal = shards[0]
        before = descriptors()
        for wrong in ShardSeal(seal.file_bytes, "0" * 32, seal.sha256), ShardSeal(1, seal.structure, seal.sha256):
            with pytest.raises(DamagedShardError):
                check(path, wrong)
        assert descriptors() == before
        check(path, seal)


class TestChangedFiles:
    def test_a_file_that_is_replaced_at_its_path_is_opened_anew(self, shards):
        (path, seal), (other, other_seal) = shards[:2]
        with lease(path, seal, NAME) as reader:
            path.replace(path.with_name("old"))
            other.replace(path)
            with lease(path, other_seal, NAME) as second:
                assert reader.get(key(1)) == content(path, 1)
                assert second.get(key(1)) == content(other, 1)
            with pytest.raises(DamagedShardError):
                check(path, seal)

    def test_a_file_that_is_touched_is_verified_again(self, shards):
        path, seal = shards[0]
        check(path, seal)
        path.touch()
        check(path, seal)

    def test_damage_to_an_open_file_is_seen_by_the_next_lease(self, shards):
        path, seal = shards[0]
        with lease(path, seal, NAME), path.open("r+b") as file:
            file.write(bytes(20))
        with pytest.raises(DamagedShardError, match="page 0 is not a meta page"):
            check(path, seal)

    def test_an_open_file_that_is_overwritten_by_another_shard_is_that_shard(self, tmp_path, io):
        here, there = tmp_path / "here", tmp_path / "there"
        seal, other = write_shard(here, [b"a" * 100] * 3), write_shard(there, [b"b" * 101] * 3)
        assert seal.file_bytes == other.file_bytes
        with lease(here, seal, NAME, io):
            here.write_bytes(there.read_bytes())
            with lease(here, other, NAME, io) as reader:
                assert reader.get(key(2)) == b"b" * 101
        with pytest.raises(DamagedShardError, match="structure must be"):
            lease(here, seal, NAME, io).__enter__()

    def test_a_file_that_is_truncated_within_a_lease_is_an_error_where_it_is_not_mapped(self, shards):
        path, seal = shards[0]
        with lease(path, seal, NAME, "pread") as reader:
            os.truncate(path, 8192)
            with pytest.raises(DamagedShardError, match=f"{NAME}: ends after .* bytes, must have"):
                reader.get(key(39))

    def test_a_file_that_is_truncated_within_a_lease_ends_the_process_where_it_is_mapped(self, shards):
        path, seal = shards[0]

        def child() -> None:
            with lease(path, seal, NAME) as reader:
                view = reader.get(key(39))
                os.truncate(path, 8192)
                bytes(view)

        assert end_of(child) == -signal.SIGBUS


class TestViews:
    def test_a_view_outlives_its_lease_and_what_it_lies_in_is_unmapped_with_it(self, shards):
        path, seal = shards[0]
        with lease(path, seal, NAME) as reader:
            kept = np.frombuffer(reader.get(key(1)), np.uint8)[9:99]
        close_all()
        assert len(mapped(path.parent)) == 1
        assert bytes(kept) == content(path, 1)[9:99]
        check(path, seal)
        del kept
        close_all()
        assert mapped(path.parent) == []

    def test_nothing_is_mapped_where_values_are_read_one_by_one(self, shards):
        before = descriptors()
        for path, seal in shards:
            check(path, seal, io="pread")
        assert mapped(shards[0][0].parent) == []
        close_all()
        assert descriptors() <= before


class TestThreads:
    def test_threads_that_open_a_shard_at_once_open_it_once(self, shards, monkeypatch):
        walks, barrier = [], threading.Barrier(8)
        walk = leases.pages.table

        def slow_walk(*arguments):
            walks.append(arguments)
            time.sleep(0.01)
            return walk(*arguments)

        monkeypatch.setattr(leases.pages, "table", slow_walk)

        def read():
            for path, seal in shards:
                barrier.wait(10)
                check(path, seal)

        run_threads([read] * 8)
        assert len(walks) == 6

    def test_threads_may_read_while_shards_come_and_go(self, shards, monkeypatch):
        monkeypatch.setattr(leases, "MAX_OPEN", 2)
        run_threads([lambda seed=seed: read_at_random(shards, seed, 100) for seed in range(8)])
        assert len(mapped(shards[0][0].parent)) <= 2

    def test_a_refused_shard_is_refused_to_each_thread(self, shards):
        path, seal = shards[0]
        wrong = ShardSeal(seal.file_bytes, "0" * 32, seal.sha256)

        def read():
            for _ in range(30):
                with pytest.raises(DamagedShardError):
                    check(path, wrong)
                check(path, seal, 1)

        run_threads([read] * 4)


class TestProcesses:
    def test_a_forked_child_reads_what_its_parent_has_open(self, shards):
        for path, seal in shards:
            check(path, seal)
        fork_and_check(lambda: run_threads([lambda seed=seed: read_at_random(shards, seed, 50) for seed in range(2)]))
        for path, seal in shards:
            check(path, seal)

    def test_a_child_that_is_forked_within_a_lease_goes_on_with_it(self, shards):
        path, seal = shards[0]
        with lease(path, seal, NAME) as reader:
            view = reader.get(key(1))

            def child():
                assert view == content(path, 1)
                assert reader.get(key(3)) == content(path, 3)
                reader.__exit__(None, None, None)
                view.release()
                check(path, seal)
                fork_and_check(lambda: read_at_random(shards, 2, 50))
                close_all()
                assert mapped(path.parent) == []
                check(path, seal)

            fork_and_check(child)
            assert view == content(path, 1)

    def test_a_spawned_child_reads_too(self, shards):
        check(*shards[0])
        child = multiprocessing.get_context("spawn").Process(target=read_at_random, args=(shards, 3, 20))
        child.start()
        child.join(60)
        assert child.exitcode == 0

    def test_children_that_are_forked_while_threads_lease_are_whole(self, tmp_path):
        in_a_process(f"tests.format.test_leases:fork_under_load({str(tmp_path)!r})")


def run_threads(work: list[Callable]) -> None:
    failures = []

    def run(call: Callable) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def read_at_random(shards: Shards, seed: int, times: int) -> None:
    draw = random.Random(seed)
    for _ in range(times):
        check(*draw.choice(shards), *draw.sample(range(40), 3))


def fork_and_check(call: Callable) -> None:
    assert end_of(call) == 0


def end_of(call: Callable) -> int:
    """Make the call in a forked child, which must end well within 20 seconds; its exit code."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        faulthandler.disable()
        try:
            call()
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_under_load(directory: str) -> None:
    """Fork again and again while threads open, read, refuse and close shards, most of which do not fit."""
    shards, over = make_shards(Path(directory), 6), threading.Event()
    leases.MAX_OPEN = 3

    def load(seed: int) -> None:
        draw = random.Random(seed)
        while not over.is_set():
            path, seal = draw.choice(shards)
            if draw.random() < 0.1:
                path.touch()
            try:
                with lease(path, ShardSeal(seal.file_bytes, "", "") if draw.random() < 0.1 else seal, NAME) as reader:
                    assert reader.get(key(5)) == content(path, 5)
            except ShardCacheError:
                pass

    threads = [threading.Thread(target=load, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for seed in range(int(os.environ.get("SHARDCACHE_TEST_FORKS", "60"))):
            fork_and_check(lambda seed=seed: read_at_random(shards, seed, 12))
    finally:
        over.set()
        for thread in threads:
            thread.join()
