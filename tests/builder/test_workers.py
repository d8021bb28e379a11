"""Worker processes: the same bytes for any number of them, however they are started, and whatever befalls them."""

import multiprocessing
import os
import re
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardcache
from shardcache import SampleError, SourceError, UsageError, WorkerDiedError
from tests.builder.conftest import digests
from tests.builder.sources import Made, NoFork, OtherLength, Traced, factory, mixed

pytestmark = pytest.mark.usefixtures("many_shards")


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"block_bytes": 3000, "progress": False, **options})


@pytest.fixture
def start_method() -> Iterator[Any]:
    yield lambda name: multiprocessing.set_start_method(name, force=True)
    multiprocessing.set_start_method(None, force=True)


@pytest.fixture(autouse=True)
def parent(monkeypatch) -> None:
    monkeypatch.setenv("SHARDCACHE_TEST_PARENT", str(os.getpid()))


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    """An undisturbed build in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardcache.format.spec.MIN_SHARD_BYTES", 4000)
        patch.setattr("shardcache.format.spec.MIN_SHARDS", 8)
        path = tmp_path_factory.mktemp("workers") / "expected"
        build(factory(), path)
    found = digests(path)
    assert len(found) > 8
    return found


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 50])
def test_the_bytes_are_the_same_for_any_number_of_workers(num_workers, expected, tmp_path):
    build(factory(), tmp_path / "c", num_workers=num_workers)
    assert digests(tmp_path / "c") == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_bytes_are_the_same_however_workers_are_started(method, expected, tmp_path, start_method):
    start_method(method)
    build("tests.builder.sources:factory", tmp_path / "c", num_workers=2, kwargs={"size": 400})
    assert digests(tmp_path / "c") == expected


def test_a_list_of_arrays_keeps_their_byte_order_on_the_way_to_a_spawned_worker(tmp_path, start_method):
    arrays = [np.arange(size, dtype=">i4") for size in (3, 500)] * 40
    build(arrays, tmp_path / "one")
    start_method("spawn")
    assert build(arrays, tmp_path / "two", num_workers=2)[1].dtype == ">i4"
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_the_bytes_are_the_same_wherever_the_dataset_comes_from(expected, tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        textwrap.dedent("""
            from tests.builder.sources import Made, mixed

            class Data(Made):
                def __init__(self, size=400):
                    super().__init__(size, mixed)

            def make(size):
                return Data(size)

            ready = Data()
        """)
    )
    monkeypatch.chdir(tmp_path)
    sources: list[Any] = [
        (f"{tmp_path}/my_data.py:make", {"size": 400}),
        ("my_data.py:Data", {}),
        ("my_data.py:ready", {}),
        ("my_data:make", {"size": 400}),
        (factory, {}),
        (lambda size: Made(size, mixed), {"size": 400}),
        ([mixed(index) for index in range(400)], {}),
        ({index: mixed(index) for index in range(400)}, {}),
    ]
    for number, (dataset, kwargs) in enumerate(sources):
        for num_workers in (0, 2) if number in (0, 5) else (0,):
            build(dataset, tmp_path / f"{number} {num_workers}", kwargs=kwargs or None, num_workers=num_workers)
            assert digests(tmp_path / f"{number} {num_workers}") == expected


def test_only_builds_of_the_same_samples_with_the_same_options_share_an_id(tmp_path):
    options: list[dict[str, Any]] = [{}, {"seed": 1}, {"layout": "source"}, {"codec": "none"}, {"block_bytes": 9000}]
    ids = [build(factory(), tmp_path / str(number), **one).manifest.cache_id for number, one in enumerate(options)]
    ids += [build(dataset, tmp_path / name).manifest.cache_id for name, dataset in [("a", factory(401)), ("b", [1, 2])]]
    assert len(set(ids)) == len(ids)
    assert build(factory(), tmp_path / "again").manifest.cache_id == ids[0]


def test_a_dataset_that_cannot_be_sent_to_a_spawned_worker_is_a_usage_error(tmp_path, start_method, leaves_nothing):
    start_method("spawn")
    with pytest.raises(UsageError, match=r"a database connection.*give a callable") as caught:
        build(NoFork(400, mixed), tmp_path / "c", num_workers=2)
    assert isinstance(caught.value.__cause__, TypeError)
    leaves_nothing()


def test_no_sample_crosses_to_the_parent_and_none_is_read_twice_by_workers(tmp_path):
    log = tmp_path / "log"
    cache = build(Traced(600, str(log)), tmp_path / "c", num_workers=2)
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    by_workers = [index for index, pid in lines if pid != os.getpid()]
    assert sorted(by_workers) == list(range(600))
    assert len(lines) - len(by_workers) < 130 + 16 + 2 * 32  # the probe, some of it again, and neighbours
    assert len(cache) == 600


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    undisturbed = build(Traced(600, str(tmp_path / "log")), tmp_path / "a", num_workers=2)
    flag = tmp_path / "was killed"
    dataset = Traced(600, str(tmp_path / "log"), deadly=311, flag=str(flag))
    build(dataset, tmp_path / "b", num_workers=2)
    assert flag.exists()
    assert digests(tmp_path / "b") == digests(undisturbed.path)


@pytest.mark.parametrize(("code", "cause"), [(0, r"by signal 9 \(Killed\)"), (3, "with exit code 3")])
def test_a_worker_that_always_dies_is_an_error_that_names_the_sample(code, cause, tmp_path):
    dataset = Traced(600, str(tmp_path / "log"), deadly=311, code=code)
    with pytest.raises(WorkerDiedError, match=rf"ended {cause} while it read sample 311, 3 times over shard \d{{5}}"):
        build(dataset, tmp_path / "c", num_workers=2)
    assert not (tmp_path / "c").exists()
    assert not multiprocessing.active_children()


def test_a_dataset_that_ends_the_process_which_makes_it_is_told(tmp_path, leaves_nothing):
    def make() -> Any:
        if os.environ["SHARDCACHE_TEST_PARENT"] != str(os.getpid()):
            os._exit(7)
        return Made(600, mixed)

    with pytest.raises(WorkerDiedError, match=r"with exit code 7 before it read a sample, 3 times over shard \d{5}"):
        build(make, tmp_path / "c", num_workers=2)
    leaves_nothing()


def flushing(log: Path, rows: int, monkeypatch: pytest.MonkeyPatch, kill: str = "") -> None:
    """A worker's first flush lasts until it reads the next shard; then it dies, if ``kill`` names no file yet."""
    flush, seen = os.fsync, set[int]()

    def slow(descriptor: int) -> None:
        me = os.getpid()
        if str(me) != os.environ["SHARDCACHE_TEST_PARENT"] and me not in seen:
            seen.add(me)
            end = time.monotonic() + 20
            while [line.split()[1] for line in log.read_text().splitlines()].count(str(me)) <= rows:
                assert time.monotonic() < end, "nothing is read while a shard is flushed"
                time.sleep(0.01)
            if kill and not Path(kill).exists():
                Path(kill).touch()
                os.kill(me, signal.SIGKILL)
        flush(descriptor)

    monkeypatch.setattr("os.fsync", slow)


def test_a_worker_reads_the_next_shard_while_the_last_one_is_flushed(tmp_path, monkeypatch):
    log = tmp_path / "log"
    undisturbed = build(Traced(600, str(log)), tmp_path / "a", num_workers=1)
    log.unlink()
    flushing(log, undisturbed.manifest.shard_rows(0), monkeypatch)
    build(Traced(600, str(log)), tmp_path / "b", num_workers=1)
    assert digests(tmp_path / "b") == digests(undisturbed.path)


@pytest.mark.parametrize("workers", [1, 2])
def test_of_a_worker_that_is_killed_the_shard_that_was_not_flushed_yet_is_built_again(workers, tmp_path, monkeypatch):
    log, flag = tmp_path / "log", tmp_path / "was killed"
    undisturbed = build(Traced(600, str(log)), tmp_path / "a", num_workers=1)
    log.unlink()
    flushing(log, undisturbed.manifest.shard_rows(0), monkeypatch, str(flag))
    build(Traced(600, str(log)), tmp_path / "b", num_workers=workers)
    assert flag.exists()
    assert digests(tmp_path / "b") == digests(undisturbed.path)


def test_a_worker_whose_death_another_process_hides_is_noticed(tmp_path):
    """Its own child has inherited its end of the pipe, so the pipe does not say that it is gone."""
    flag = tmp_path / "was killed"
    dataset = Traced(600, str(tmp_path / "log"), deadly=311, flag=str(flag), has_child=True)
    build(dataset, tmp_path / "c", num_workers=2)
    os.kill(int(flag.read_text()), signal.SIGKILL)  # it is still there


def test_a_sample_that_hangs_is_ended_and_read_again(tmp_path):
    undisturbed = build(Traced(600, str(tmp_path / "log")), tmp_path / "a", num_workers=2)
    flag = tmp_path / "hung"
    dataset = Traced(600, str(tmp_path / "log"), deadly=311, flag=str(flag), hangs=True)
    build(dataset, tmp_path / "b", num_workers=2, sample_timeout=1)
    assert flag.exists()
    assert digests(tmp_path / "b") == digests(undisturbed.path)


def test_a_sample_that_always_hangs_is_an_error_that_names_it(tmp_path):
    dataset = Traced(600, str(tmp_path / "log"), deadly=311, hangs=True)
    with pytest.raises(SampleError, match=r"dataset\[311\] did not return within 0.5 s \(sample_timeout\).*3 times"):
        build(dataset, tmp_path / "c", num_workers=1, sample_timeout=0.5)
    assert not (tmp_path / "c").exists()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("each", [1, 3])
def test_a_worker_is_replaced_after_so_many_shards(each, expected, tmp_path):
    log = tmp_path / "log"
    cache = build(Traced(600, str(log)), tmp_path / "a", num_workers=2, max_shards_per_worker=each)
    workers = {line.split()[1] for line in log.read_text().splitlines()} - {str(os.getpid())}
    shards = len(cache.manifest.shards)
    assert shards > 2 * each
    assert -(-shards // each) <= len(workers) <= -(-shards // each) + 1
    build(factory(), tmp_path / "b", num_workers=2, max_shards_per_worker=each)
    assert digests(tmp_path / "b") == expected


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"num_workers": -1}, "num_workers must be 0 or more, was -1"),
        ({"num_workers": 1, "sample_timeout": 0}, "sample_timeout must be a number of seconds above 0, was 0"),
        ({"num_workers": 1, "sample_timeout": "5"}, "sample_timeout must be a number of seconds above 0, was '5'"),
        ({"num_workers": 1, "max_shards_per_worker": 0}, "max_shards_per_worker must be 1 or more, was 0"),
        ({"sample_timeout": 5}, "sample_timeout= needs num_workers=1 or more"),
        ({"max_shards_per_worker": 5}, "max_shards_per_worker= needs num_workers=1 or more"),
    ],
)
def test_an_option_of_workers_that_has_no_sense_is_refused(options, what, tmp_path, leaves_nothing):
    with pytest.raises(UsageError, match=what):
        build(factory(), tmp_path / "c", **options)
    leaves_nothing()


def test_an_error_in_a_worker_ends_the_others_and_brings_its_traceback(tmp_path):
    def make(index: int) -> int:
        if index == 333:
            raise KeyError("lost key")
        return index

    with pytest.raises(SampleError, match=r"dataset\[333\] raised KeyError: 'lost key'") as caught:
        build(Made(3000, make), tmp_path / "c", num_workers=3, block_bytes=100)
    assert re.search(r"In a worker process:(.|\n)*in make", "\n".join(caught.value.__notes__))
    assert not multiprocessing.active_children()
    assert not (tmp_path / "c").exists()


def test_a_length_that_differs_in_a_worker_is_told(tmp_path, leaves_nothing):
    with pytest.raises(SourceError, match="is 401 in a worker, 400 in the parent"):
        build(OtherLength(400, mixed), tmp_path / "c", num_workers=2)
    leaves_nothing()
