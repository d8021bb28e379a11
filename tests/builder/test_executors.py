"""Executors of others build the shards: the same bytes, typed errors, and what breaks is continued."""

import concurrent.futures
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pytest

import shardcache
from shardcache import BuildError, SampleError, UsageError, WorkerDiedError
from shardcache.builder.engine import Engine
from shardcache.builder.probe import Options, draw_up
from shardcache.builder.source import Recipe, Source
from shardcache.builder.staging import Staging
from shardcache.builder.work import Work
from tests.builder.conftest import digests, files
from tests.builder.sources import Logged, Made, NoFork, Traced, factory, mixed
from tests.processes import wait_for

distributed = pytest.importorskip("distributed")

SIZE = 600
ENGINES = ["processes", "threads", "loky", "dask"]

pytestmark = [
    pytest.mark.usefixtures("many_shards"),
    # Of dask, about itself, when its processes are killed or the machine is slow.
    pytest.mark.filterwarnings("ignore::UserWarning:distributed"),
]


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"block_bytes": 3000, "progress": False, **options})


@pytest.fixture(autouse=True)
def parent(monkeypatch) -> None:
    monkeypatch.setenv("SHARDCACHE_TEST_PARENT", str(os.getpid()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A real one: a scheduler, and two processes that are started again when they are killed."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    match request.param:
        case "processes":
            with ProcessPoolExecutor(2) as found:
                yield found
        case "threads":
            with ThreadPoolExecutor(3) as found:
                yield found
        case "loky":
            found = loky.ProcessPoolExecutor(2)
            yield found
            found.shutdown(kill_workers=True)
        case "dask":
            yield request.getfixturevalue("client").get_executor()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    """An undisturbed build in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardcache.format.spec.MIN_SHARD_BYTES", 4000)
        patch.setattr("shardcache.format.spec.MIN_SHARDS", 8)
        path = tmp_path_factory.mktemp("executors") / "expected"
        build(factory(), path)
    return digests(path)


@pytest.mark.parametrize("executor", ENGINES, indirect=True)
def test_the_bytes_are_the_same_and_the_dataset_is_made_once_in_each_process(executor, expected, tmp_path):
    log = tmp_path / "log"
    build(Logged(400, str(log)), tmp_path / "c", executor=executor)
    assert digests(tmp_path / "c") == expected
    assert files(tmp_path) == ["c", "log"]
    made = Counter(log.read_text().split())
    assert made.pop(str(os.getpid())) == 1
    assert set(made.values()) <= {1}
    assert len(made) <= 2
    build("tests.builder.sources:factory", tmp_path / "d", kwargs={"size": 400}, executor=executor)
    assert digests(tmp_path / "d") == expected


@pytest.mark.parametrize("executor", ENGINES, indirect=True)
def test_a_list_of_arrays_keeps_their_byte_order(executor, tmp_path):
    arrays = [np.arange(size, dtype=">i4") for size in (3, 500)] * 40
    build(arrays, tmp_path / "one")
    assert build(arrays, tmp_path / "two", executor=executor)[1].dtype == ">i4"
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@pytest.mark.parametrize("executor", ENGINES, indirect=True)
def test_an_error_of_a_sample_is_the_same_through_any_executor_and_the_build_continues(executor, expected, tmp_path):
    log = str(tmp_path / "log")
    with pytest.raises(SampleError, match="raised KeyError") as caught:
        build(Logged(400, log, bad=201), tmp_path / "c", executor=executor)
    assert str(caught.value) == "dataset[201] raised KeyError: 'lost key'"
    assert "in __getitem__" in "".join(caught.value.__notes__)
    assert not list((tmp_path / "c.partial").glob("attempts-*"))
    build(Logged(400, log), tmp_path / "c", executor=executor)
    assert digests(tmp_path / "c") == expected


@pytest.mark.parametrize("executor", ["processes", "loky"], indirect=True)
def test_a_pool_whose_process_is_killed_ends_the_build_and_the_same_call_continues_it(executor, tmp_path):
    log, flag = tmp_path / "log", tmp_path / "was killed"
    dataset = Traced(SIZE, str(log), deadly=560, flag=str(flag), delay=0.002)
    with pytest.raises(
        WorkerDiedError, match=r"a process of the executor died while shard \d{5} was built.*the same call continues"
    ):
        build(dataset, tmp_path / "c", executor=executor, layout="source")
    assert flag.exists()
    done = {file: file.stat().st_ino for file in (tmp_path / "c.partial").glob("shard-*.json")}
    assert done
    with ProcessPoolExecutor(2) as another:
        build(dataset, tmp_path / "c", executor=another, layout="source")
    build(Traced(SIZE, str(log)), tmp_path / "d", layout="source")
    assert digests(tmp_path / "c") == digests(tmp_path / "d")


def test_an_executor_that_cancels_ends_the_build(expected, tmp_path):
    executor = ThreadPoolExecutor(1)

    def make(index: int) -> Any:
        if index == 222:
            executor.shutdown(wait=False, cancel_futures=True)
        return mixed(index)

    with pytest.raises(BuildError, match=r"shard \d{5} was cancelled|cannot schedule new futures") as caught:
        build(Made(400, make), tmp_path / "c", executor=executor, layout="source")
    assert "the same call continues" in str(caught.value)
    with ThreadPoolExecutor(1) as another:
        build(Made(400, mixed), tmp_path / "c", executor=another, layout="source")
    build(factory(), tmp_path / "d", layout="source")
    assert digests(tmp_path / "c") == digests(tmp_path / "d")


def test_who_is_still_at_a_shard_when_the_build_ends_gives_up_and_leaves_nothing(tmp_path):
    """Threads cannot be ended: one that is slow goes on beside the build that continues."""
    began, failed, gone_on = threading.Event(), threading.Event(), threading.Event()

    def make(index: int) -> Any:
        if threading.current_thread() is not threading.main_thread() and not failed.is_set():
            if index == 390:
                began.wait(60)
                failed.set()
                raise OSError("the network is down")
            if index < 100:
                began.set()
                gone_on.wait(60)
        return mixed(index)

    executor = ThreadPoolExecutor(9)
    with pytest.raises(SampleError, match="network is down"):
        build(Made(400, make), tmp_path / "c", executor=executor, layout="source", block_bytes=1500)
    build(Made(400, mixed), tmp_path / "c", layout="source", block_bytes=1500)
    before = digests(tmp_path / "c")
    gone_on.set()
    executor.shutdown(wait=True)
    assert digests(tmp_path / "c") == before
    assert files(tmp_path) == ["c"]


@pytest.mark.parametrize(("num_workers", "most"), [(0, 4), (3, 3)])
def test_only_so_many_shards_are_under_way_at_a_time_and_all_are_reported(num_workers, most, tmp_path):
    class Counting(ThreadPoolExecutor):
        seen, under_way = 0, 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(*args, **kwargs)
            self.under_way += 1
            self.seen = max(self.seen, self.under_way)
            return future

    source, reports = Source(factory()), []
    with Staging(tmp_path / "c") as staging, Counting(2) as executor:
        plan = draw_up(source, Options("shuffled", block_bytes=3000))
        work = Work(Recipe(source.dataset, None), plan, staging.directory)
        shards = range(plan.shard_count)
        for record in Engine(num_workers, executor=executor).build(work, source, shards, reports.append):
            executor.under_way -= 1
            assert (staging.directory / f"shard-{record.number:05d}.lmdb").exists()
    assert len(shards) > most
    assert executor.seen == most
    assert sum(report.samples for report in reports) == 400


def test_what_cannot_be_pickled_goes_to_threads_only(expected, tmp_path):
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(
            UsageError,
            match=r"cannot be sent to the processes of an executor \(.*database connection\); give a callable",
        ),
    ):
        build(NoFork(400, mixed), tmp_path / "c", executor=executor)
    with ThreadPoolExecutor(2) as executor:
        build(NoFork(400, mixed), tmp_path / "c", executor=executor)
    assert digests(tmp_path / "c") == expected


def test_what_cannot_be_imported_by_the_other_process_is_told(tmp_path, monkeypatch, client):
    (tmp_path / "here_only.py").write_text("from tests.builder.sources import *\nclass Here(Made): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import here_only

    with pytest.raises(
        UsageError, match=r"cannot be made in a process of the executor \(ModuleNotFoundError: .*here_only"
    ):
        build(here_only.Here(400, mixed), tmp_path / "c", executor=client.get_executor())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"executor": "dask"}, r"executor must be a concurrent.futures.Executor \(of dask: Client.get_executor\(\)\)"),
        ({"executor": ThreadPoolExecutor(1), "sample_timeout": 3}, "sample_timeout= is for workers of our own"),
        ({"executor": ThreadPoolExecutor(1), "max_shards_per_worker": 3}, "max_shards_per_worker= is for workers of"),
    ],
)
def test_an_option_that_does_not_go_with_an_executor_is_refused(options, what, tmp_path, leaves_nothing):
    with pytest.raises(UsageError, match=what):
        build(factory(), tmp_path / "c", **options)
    leaves_nothing()


def killed_in_the_middle(log: Path, partial: Path) -> concurrent.futures.Future[int]:
    """Kills a process that reads samples, once some shards are done; its number."""

    def kill() -> int:
        wait_for(lambda: len(list(partial.glob("shard-*.json"))) >= 2)
        pids = {int(line.split()[1]) for line in log.read_text().splitlines() if line.count(" ")} - {os.getpid()}
        os.kill(pid := max(pids), signal.SIGKILL)
        return pid

    thread = ThreadPoolExecutor(1)
    future = thread.submit(kill)
    thread.shutdown(wait=False)
    return future


def test_a_dask_worker_that_is_killed_in_the_middle_is_made_up_for(tmp_path, client):
    log, partial = tmp_path / "log", tmp_path / "c.partial"
    killed = killed_in_the_middle(log, partial)
    build(Traced(SIZE, str(log), delay=0.004), tmp_path / "c", executor=client.get_executor())
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert killed.result() in {pid for _, pid in lines}
    build(Traced(SIZE, str(log)), tmp_path / "plain")
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")
    assert files(tmp_path) == ["c", "log", "plain"]


def test_a_dask_worker_that_is_killed_too_often_ends_the_build_and_the_same_call_continues_it(
    tmp_path, client, cluster, monkeypatch
):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    log, flag = tmp_path / "log", tmp_path / "was killed"
    dataset = Traced(SIZE, str(log), deadly=560, flag=str(flag), delay=0.002)
    with pytest.raises(WorkerDiedError, match=r"a process of the executor died.*KilledWorker.*the same call continues"):
        build(dataset, tmp_path / "c", executor=client.get_executor(), layout="source")
    assert flag.exists()
    assert list((tmp_path / "c.partial").glob("shard-*.json"))
    build(dataset, tmp_path / "c", executor=client.get_executor(), layout="source")
    build(Traced(SIZE, str(log)), tmp_path / "plain", layout="source")
    assert digests(tmp_path / "c") == digests(tmp_path / "plain")
