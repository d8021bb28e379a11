"""A build that is interrupted anywhere leaves nothing, or what the same call continues to the same bytes."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardcache
from shardcache import BuildInProgressError, BuildMismatchError, StorageError, UnsupportedTypeError
from shardcache.format import spec
from tests.builder.conftest import digests
from tests.builder.sources import Made, Traced, mixed
from tests.format.test_shard import small_disk
from tests.processes import alive_after, wait_for

ROOT = Path(__file__).parents[2]
SIZE = 500

pytestmark = pytest.mark.usefixtures("many_shards")


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"block_bytes": 20_000, "progress": False, **options})


def readers(log: Path) -> set[int]:
    """The processes that have read samples of a :class:`Traced`."""
    return {int(line.split()[1]) for line in log.read_text().splitlines()}


BUILD = """
import sys, shardcache
from shardcache.format import spec
from tests.builder.sources import Traced
spec.MIN_SHARD_BYTES, spec.MIN_SHARDS = 4000, 8
shardcache.build(Traced(500, sys.argv[2], delay=0.004), sys.argv[1], block_bytes=20_000, num_workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_build_that_was_killed_is_continued_and_what_was_done_is_not_done_again(num_workers, tmp_path):
    target, partial, log, first_log = (tmp_path / name for name in ("c", "c.partial", "log", "first log"))
    command = [sys.executable, "-c", BUILD, str(target), str(first_log), str(num_workers)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for(lambda: len(list(partial.glob("shard-*.json"))) >= 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not target.exists()
    assert not alive_after(20, readers(first_log))  # a worker may finish what it is at
    records = [json.loads(file.read_bytes()) for file in partial.glob("shard-*.json")]
    assert len(records) < 20
    build(Traced(SIZE, str(log)), target, num_workers=num_workers)
    read = [int(line.split()[0]) for line in log.read_text().splitlines()]
    manifest = shardcache.open(target).manifest
    size = manifest.blocks_per_shard * manifest.rows_per_block
    rows = np.concatenate([np.arange(n * size, min((n + 1) * size, SIZE)) for n in (r["number"] for r in records)])
    done = set(manifest.permutation().forward(rows).tolist())
    assert len(done) > 3
    assert set(read) >= set(range(SIZE)) - done
    assert len(done & set(read)) <= 63  # the probe decides about the plan again
    build(Traced(SIZE, str(log)), tmp_path / "undisturbed")
    assert digests(target) == digests(tmp_path / "undisturbed")


UNYIELDING = """
import os, sys, shardcache
from tests.builder.sources import Unyielding
os.environ["SHARDCACHE_TEST_PARENT"] = str(os.getpid())
path = sys.argv[1]
shardcache.build(Unyielding(500, path + ".log", deadly=400, flag=path + ".flag"), path, num_workers=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_worker_ends_with_its_build_although_a_sample_lets_no_thread_of_it_run(tmp_path):
    """Nothing else keeps it from writing on into what the next build continues."""
    process = subprocess.Popen([sys.executable, "-c", UNYIELDING, str(tmp_path / "c")], cwd=ROOT)
    try:
        wait_for(lambda: (tmp_path / "c.flag").exists())
    finally:
        process.kill()
        process.wait()
    workers = readers(tmp_path / "c.log") - {process.pid}
    left = alive_after(20, workers)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert workers
    assert not left


def test_a_build_that_ends_at_any_step_on_the_disk_is_continued_to_the_same_bytes(tmp_path):
    dataset = [np.full(50, index) for index in range(60)]
    build(dataset, tmp_path / "undisturbed")
    expected = digests(tmp_path / "undisturbed")
    assert len(expected) >= 3
    step, finished = 0, False
    while not finished:
        target = tmp_path / f"c{step}"
        finished = _build_until(step, dataset, target)
        assert not target.exists() or digests(target).items() >= expected.items()  # at once, or not at all
        done = _files_that_need_not_be_written_again(target.with_name(f"c{step}.partial"))
        build(dataset, target, if_exists="open")
        assert {file: (target / file).stat().st_ino for file in done} == done
        assert {name: digest for name, digest in digests(target).items() if name != "lock"} == expected
        assert not target.with_name(f"c{step}.partial").exists()
        step += 1
    assert step > 20


def _files_that_need_not_be_written_again(partial: Path) -> dict[str, int]:
    """The shards that have a record; all of them where there is a manifest already."""
    pattern = "shard-*.lmdb" if (partial / spec.MANIFEST_NAME).exists() else "shard-*.json"
    shards = [file.with_suffix(".lmdb") for file in partial.glob(pattern)]
    return {shard.name: shard.stat().st_ino for shard in shards}


def _build_until(step: int, dataset: Any, target: Path) -> bool:
    """Build in a process that ends without a word before its step number ``step`` that changes the directory."""
    process = os.fork()
    if not process:
        left = step

        def count(event: str, args: Any) -> None:
            nonlocal left
            if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "lmdb.open") or (
                event == "open" and str(args[0]).startswith(str(target)) and args[2] & os.O_CREAT
            ):
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(count)
        build(dataset, target)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


def interrupted(path: Path) -> None:
    """A build that got far enough to be worth continuing."""

    def make(index: int) -> Any:
        if index == 444:
            raise OSError(errno.EIO, "the network is down")
        return mixed(index)

    with pytest.raises(shardcache.SampleError, match="network is down"):
        build(Made(SIZE, make), path, layout="source", block_bytes=3000)
    assert list(path.with_name(path.name + ".partial").glob("shard-*.json"))


@pytest.mark.parametrize(
    ("dataset", "options", "what"),
    [
        (Made(SIZE + 1, mixed), {}, "samples: 500 there, 501 now"),
        (Made(SIZE, mixed), {"layout": "shuffled"}, "layout: 'source' there, 'shuffled' now"),
        (Made(SIZE, mixed), {"seed": 1}, "seed: 0 there, 1 now"),
        (Made(SIZE, mixed), {"block_bytes": 9000}, "rows_per_block: "),
        (Made(SIZE, mixed), {"codec": "none"}, r"column '\w+': codec 'zstd:\S+' there, 'none' now"),
        (Made(SIZE, lambda i: {**mixed(i), "new": i}), {}, "column 'new': not there, is one now"),
        (Made(SIZE, lambda i: {**mixed(i), "label": i / 2}), {}, "column 'label': type 'int' there, 'float' now"),
        (Made(SIZE, lambda i: dict(reversed(mixed(i).items()))), {}, "the structure of a sample differs"),
        (Made(SIZE, lambda i: {**mixed(i), "label": i % 10 + (i == 499)}), {}, "the samples differ"),
    ],
)
def test_another_build_does_not_continue_it_and_says_what_differs(dataset, options, what, tmp_path):
    interrupted(tmp_path / "c")
    before = digests(tmp_path / "c.partial")
    with pytest.raises(BuildMismatchError, match=f"c.partial holds an interrupted build of something else.*{what}"):
        build(dataset, tmp_path / "c", **{"layout": "source", "block_bytes": 3000, **options})
    assert digests(tmp_path / "c.partial") == before
    build(Made(SIZE, mixed), tmp_path / "c", layout="source", block_bytes=3000)
    assert not (tmp_path / "c.partial").exists()


@pytest.mark.parametrize("name", ["plan.json", "shard-00000.json"])
def test_leftovers_that_are_damaged_are_told(name, tmp_path):
    interrupted(tmp_path / "c")
    (tmp_path / "c.partial" / name).write_bytes(b'{"format": "shar')
    with pytest.raises(BuildMismatchError, match=r"c.partial is damaged"):
        build(Made(SIZE, mixed), tmp_path / "c", layout="source", block_bytes=3000)


def test_a_shard_that_was_lost_in_between_is_built_again(tmp_path):
    interrupted(tmp_path / "c")
    (tmp_path / "c.partial" / "shard-00000.lmdb").unlink()
    (tmp_path / "c.partial" / "shard-00001.lmdb").write_bytes(b"half")
    build(Made(SIZE, mixed), tmp_path / "c", layout="source", block_bytes=3000)
    build(Made(SIZE, mixed), tmp_path / "d", layout="source", block_bytes=3000)
    assert digests(tmp_path / "c") == digests(tmp_path / "d")


def test_files_that_no_plan_speaks_of_are_not_published(tmp_path):
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "shard-00099.lmdb").write_bytes(b"from another time")
    build([1, 2, 3], tmp_path / "c")
    assert sorted(digests(tmp_path / "c")) == ["manifest.json", "shard-00000.lmdb"]


def test_two_builds_of_one_path_at_once_do_not_meet(tmp_path):
    refused = []

    def make(index: int) -> int:
        if index == 250:
            with pytest.raises(BuildInProgressError, match="another process is building") as caught:
                build([1, 2], tmp_path / "c")
            refused.append(caught.value)
        return index

    cache = build(Made(SIZE, make), tmp_path / "c")
    assert len(refused) == 1
    assert list(cache) == list(range(SIZE))
    assert not (tmp_path / "c" / "lock").exists()


def test_a_cache_that_somebody_else_finished_in_the_meantime_is_opened(tmp_path, monkeypatch):
    """Both found nothing at the path; the second got the lock when the first was done."""
    from shardcache.builder import build as module

    enter = module.Staging.__enter__

    def late(self: Any) -> Any:
        monkeypatch.setattr(module.Staging, "__enter__", enter)
        build([1, 2, 3], tmp_path / "c")
        return enter(self)

    monkeypatch.setattr(module.Staging, "__enter__", late)
    dataset = Made(3, mixed)
    assert list(build(dataset, tmp_path / "c", if_exists="open")) == [1, 2, 3]
    assert dataset.reads == {}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_publishes_nothing_and_what_fitted_is_continued_when_there_is_room(num_workers, tmp_path):
    dataset = Made(200, lambda index: np.random.default_rng(index).bytes(20_000))
    with small_disk(tmp_path / "disk", 3 << 20) as disk:
        with pytest.raises(StorageError, match=r"disk full|disk is full"):
            build(dataset, disk / "c", codec="none", block_bytes=100_000, num_workers=num_workers, force=True)
        assert not (disk / "c").exists()
        subprocess.run(["mount", "-o", "remount,size=20M", disk], check=True)
        cache = build(dataset, disk / "c", codec="none", block_bytes=100_000, num_workers=num_workers)
        assert cache[123] == dataset.make(123)
        assert [file.name for file in disk.iterdir()] == ["c"]
        del cache  # it holds the disk


def test_nothing_is_kept_of_a_build_that_had_not_finished_a_shard(tmp_path, leaves_nothing):
    with pytest.raises(UnsupportedTypeError):
        build([object()], tmp_path / "c")
    leaves_nothing()


def test_what_is_published_is_flat_and_complete(tmp_path):
    cache = build(Made(SIZE, mixed), tmp_path / "c")
    shards = [spec.shard_name(number) for number in range(len(cache.manifest.shards))]
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [
        spec.MANIFEST_NAME,
        spec.PROVENANCE_NAME,
        *shards,
    ]
