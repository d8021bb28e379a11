"""A build in parts: jobs that know nothing of each other but the directory, at the same time or one after another."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shardcache
from shardcache import (
    BuildError,
    BuildInProgressError,
    BuildMismatchError,
    CacheExistsError,
    CacheNotFoundError,
    SampleError,
    UsageError,
    finish,
)
from shardcache.builder.staging import Staging
from shardcache.format import provenance, spec
from tests.builder.conftest import digests, files
from tests.builder.sources import Endless, Made, Traced, factory, mixed
from tests.processes import wait_for

SIZE = 600

pytestmark = pytest.mark.usefixtures("many_shards")


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"block_bytes": 3000, "progress": False, **options})


@pytest.fixture
def started() -> Any:
    """Starts builds in forked processes; returns what says how each ended: nothing, or the name of its error."""
    processes: list[Any] = []

    def run(dataset: Any, path: Path, barrier: Any, ends: Any, options: dict[str, Any]) -> None:
        barrier.wait()
        try:
            build(dataset, path, **options)
        except BaseException as error:
            ends.put(type(error).__name__)
        else:
            ends.put("")

    def start(calls: list[tuple[Any, Path, dict[str, Any]]]) -> Any:
        context = multiprocessing.get_context("fork")
        barrier, ends = context.Barrier(len(calls)), context.Queue()
        for dataset, path, options in calls:
            processes.append(context.Process(target=run, args=(dataset, path, barrier, ends, options)))
            processes[-1].start()
        return lambda: [ends.get(timeout=100) for _ in calls]

    start.processes = processes  # type: ignore[attr-defined]
    yield start
    for process in processes:
        process.kill()
        process.join()


def test_parts_one_after_another_come_to_the_same_bytes_as_a_plain_build(tmp_path):
    build(factory(), tmp_path / "plain")
    for number in (2, 3, 1):
        assert build(factory(), tmp_path / "c", part=(number, 3), num_workers=number - 1) is None
        assert not (tmp_path / "c").exists()
    cache = finish(tmp_path / "c")
    assert len(cache) == 400
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")
    assert files(tmp_path) == ["c", "plain"]
    assert files(tmp_path / "c") == files(tmp_path / "plain")


def test_parts_at_the_same_time_come_to_the_same_bytes(tmp_path, started):
    logs = [tmp_path / f"log {number}" for number in range(4)]
    calls = [
        (Traced(SIZE, str(log), delay=0.002), tmp_path / "c", {"part": (number + 1, 4), "num_workers": number % 2})
        for number, log in enumerate(logs)
    ]
    assert started(calls)() == [""] * 4
    finish(tmp_path / "c")
    cache = build(Traced(SIZE, str(tmp_path / "log")), tmp_path / "plain")
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")
    reads = [int(line.split()[0]) for log in logs for line in log.read_text().splitlines()]
    assert set(reads) == set(range(SIZE))
    assert len(cache.manifest.shards) > 8


def test_a_part_that_was_killed_is_built_again_while_others_go_on(tmp_path, started):
    path, partial = tmp_path / "c", tmp_path / "c.partial"
    ends = started(
        [(Traced(SIZE, str(tmp_path / f"log {number}"), delay=0.01), path, {"part": (number, 2)}) for number in (1, 2)]
    )
    wait_for(lambda: len(list(partial.glob("shard-*.json"))) >= 2)
    os.kill(started.processes[0].pid, signal.SIGKILL)
    started.processes[0].join()
    with pytest.raises(BuildInProgressError, match=r"a part|another process"):
        finish(path)
    build(Traced(SIZE, str(tmp_path / "again")), path, part=(1, 2), num_workers=2)
    del ends
    started.processes[1].join()
    finish(path)
    build(Traced(SIZE, str(tmp_path / "log")), tmp_path / "plain")
    assert digests(path) == digests(tmp_path / "plain")


def test_there_may_be_more_parts_than_shards(tmp_path):
    for number in range(1, 10):
        build([1, 2, 3], tmp_path / "c", part=(number, 9))
    assert list(finish(tmp_path / "c")) == [1, 2, 3]


def test_finish_names_the_parts_that_are_missing(tmp_path):
    build(factory(), tmp_path / "c", part=(2, 4))
    build(factory(), tmp_path / "c", part=(4, 4))
    with pytest.raises(
        BuildError,
        match=r"shards are not there.*: part 1/4 \(shards 00000-0000\d\), part 3/4 \(.*\); build these again",
    ):
        finish(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    build(factory(), tmp_path / "c", part=(1, 4))
    build(factory(), tmp_path / "c", part=(3, 4))
    assert len(finish(tmp_path / "c")) == 400


def test_finish_names_the_shards_where_nobody_knows_the_parts(tmp_path):
    def make(index: int) -> Any:
        if index == 444:
            raise OSError("the network is down")
        return mixed(index)

    with pytest.raises(SampleError, match="network is down"):
        build(Made(500, make), tmp_path / "c", layout="source")
    with pytest.raises(
        BuildError, match=r"\d+ of \d+ shards are not there.*: shards 000\d\d-000\d\d; build these again"
    ):
        finish(tmp_path / "c")


@pytest.mark.parametrize("damage", ["zeros", "shorter"])
def test_finish_does_not_publish_a_shard_that_is_not_what_its_part_wrote(damage, tmp_path):
    build(factory(), tmp_path / "plain")
    for number in (1, 2):
        build(factory(), tmp_path / "c", part=(number, 2))
    shard = tmp_path / "c.partial" / spec.shard_name(1)
    size = shard.stat().st_size
    os.truncate(shard, 100)
    if damage == "zeros":
        os.truncate(shard, size)
    with pytest.raises(BuildError, match=r"1 of \d+ shards are not there \(or not whole\): part 1/2 \(shards 00001\)"):
        finish(tmp_path / "c")
    build(factory(), tmp_path / "c", part=(1, 2))
    finish(tmp_path / "c")
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")


def test_finish_opens_what_was_finished_before_and_says_where_there_is_nothing(tmp_path):
    build([1, 2, 3], tmp_path / "c", part=(1, 1))
    assert list(finish(tmp_path / "c")) == [1, 2, 3]
    assert list(finish(tmp_path / "c")) == [1, 2, 3]
    with pytest.raises(CacheExistsError):
        build([1, 2, 3], tmp_path / "c", part=(1, 1))
    with pytest.raises(CacheNotFoundError, match="no part of a cache was built here; 'shardcache build --part 1/N"):
        finish(tmp_path / "d")
    assert files(tmp_path) == ["c"]


def test_finish_replaces_a_cache_only_where_it_is_told_to(tmp_path):
    build([1, 2, 3], tmp_path / "c")
    build([4, 5, 6], tmp_path / "c", part=(1, 1), if_exists="replace")
    with pytest.raises(CacheExistsError):
        finish(tmp_path / "c")
    assert list(finish(tmp_path / "c", if_exists="open")) == [1, 2, 3]
    assert list(finish(tmp_path / "c", if_exists="replace")) == [4, 5, 6]
    with pytest.raises(UsageError, match="if_exists must be"):
        finish(tmp_path / "c", if_exists="maybe")


def test_a_finished_cache_knows_where_it_comes_from(tmp_path):
    build("tests.builder.sources:factory", tmp_path / "c", part=(1, 1))
    finish(tmp_path / "c")
    found = provenance.read(tmp_path / "c")
    assert found is not None
    assert found.factory == "tests.builder.sources:factory"
    assert found.seconds >= 0


@pytest.mark.parametrize("note", [b"\xff", b"{}", b"[" * 100_000, None])
def test_a_note_of_a_part_that_is_not_what_was_written_is_none(tmp_path, note):
    build("tests.builder.sources:factory", tmp_path / "c", part=(1, 1))
    (written,) = (tmp_path / "c.partial").glob("part-*-of-*.json")
    written.write_bytes(note or written.read_bytes().replace(b'"built":"2', b'"built":"x'))
    finish(tmp_path / "c")
    assert provenance.read(tmp_path / "c") is None


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({}, BuildInProgressError, "another process is building this cache now"),
        ({"part": (1, 2)}, BuildInProgressError, "another process is building part 1/2 of this cache now"),
        ({"part": (1, 3)}, BuildMismatchError, r"is being built in 2 parts now \(part 1/2 is under way\), this is 1/3"),
    ],
)
def test_what_would_meet_a_part_that_is_being_built_is_refused(options, error, what, tmp_path):
    refused = []

    def make(index: int) -> int:
        if index == 100 and not refused:
            with pytest.raises(error, match=what) as caught:
                build(factory(), tmp_path / "c", **options)
            refused.append(caught.value)
        return index

    build(Made(300, make), tmp_path / "c", part=(1, 2), layout="source")
    assert len(refused) == 1
    build(Made(300, make), tmp_path / "c", part=(2, 2), layout="source")
    assert list(finish(tmp_path / "c")) == list(range(300))


def test_a_part_does_not_meet_a_whole_build(tmp_path):
    refused = []

    def make(index: int) -> int:
        if index == 100 and not refused:
            with pytest.raises(
                BuildInProgressError, match="another process is building the whole of this cache"
            ) as caught:
                build(factory(), tmp_path / "c", part=(1, 2))
            refused.append(caught.value)
        return index

    assert list(build(Made(300, make), tmp_path / "c")) == list(range(300))
    assert len(refused) == 1


def test_parts_that_ran_may_be_divided_anew_and_a_whole_build_does_the_rest(tmp_path):
    build(factory(), tmp_path / "plain")
    build(factory(), tmp_path / "c", part=(1, 4))
    build(factory(), tmp_path / "c", part=(2, 3))
    before = {file: file.stat().st_ino for file in (tmp_path / "c.partial").glob("shard-*.lmdb")}
    assert len(before) > 4
    build(factory(), tmp_path / "c")
    assert all((tmp_path / "c" / file.name).stat().st_ino == inode for file, inode in before.items())
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")
    assert files(tmp_path / "c") == files(tmp_path / "plain")


def test_a_part_of_something_else_is_refused(tmp_path):
    build(factory(), tmp_path / "c", part=(1, 2))
    before = digests(tmp_path / "c.partial")
    for dataset, options, what in [
        (factory(), {"seed": 1}, "seed: 0 there, 1 now"),
        (factory(401), {}, "samples: 400"),
    ]:
        with pytest.raises(BuildMismatchError, match=what):
            build(dataset, tmp_path / "c", part=(2, 2), **options)
    assert digests(tmp_path / "c.partial").items() >= before.items()
    build(factory(), tmp_path / "c", part=(2, 2))
    finish(tmp_path / "c")


def test_of_parts_that_begin_at_once_with_two_plans_one_plan_wins(tmp_path, started):
    calls = [(factory(), tmp_path / "c", {"part": (number, 8), "seed": number % 2}) for number in range(1, 9)]
    ends = started(calls)()
    assert sorted(ends) == [""] * 4 + ["BuildMismatchError"] * 4
    seed = Staging(tmp_path / "c").found()[0].seed
    for number in range(1, 9):
        build(factory(), tmp_path / "c", part=(number, 8), seed=seed)
    build(factory(), tmp_path / "plain", seed=seed)
    finish(tmp_path / "c")
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")


def test_nothing_is_kept_of_parts_that_had_not_finished_a_shard(tmp_path, leaves_nothing, started):
    calls = [([object()] * 50, tmp_path / "c", {"part": (number, 4)}) for number in range(1, 5)]
    assert started(calls)() == ["UnsupportedTypeError"] * 4
    for process in started.processes:
        process.join()
    leaves_nothing()


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (-1, 2), (1, 0), (1, 1 << 17), 3, (1,), (1.0, 2), (True, 2)])
def test_a_part_that_is_none_is_refused(part, tmp_path, leaves_nothing):
    with pytest.raises(UsageError, match="part must be"):
        build(factory(), tmp_path / "c", part=part)
    leaves_nothing()


def test_get_or_build_has_no_parts(tmp_path):
    with pytest.raises(UsageError, match="part= is not for get_or_build"):
        shardcache.get_or_build(factory, name="c", cache_dir=tmp_path / "home", part=(1, 2))


def test_what_can_only_be_iterated_has_no_parts_and_is_not_finished_before_its_end(tmp_path):
    for options in ({"part": (1, 2)}, {"executor": ThreadPoolExecutor(1)}):
        with pytest.raises(UsageError, match="read by one process, in one pass"):
            build(Endless(500), tmp_path / "c", **options)
    with pytest.raises(KeyboardInterrupt):
        build(Endless(2000, stops_at=1900), tmp_path / "c", block_bytes=1500)
    with pytest.raises(BuildError, match="is not built in parts, but in one pass"):
        finish(tmp_path / "c")
    assert len(build(Endless(2000), tmp_path / "c", block_bytes=1500)) == 2000
