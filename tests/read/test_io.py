"""``io=``: the same samples by either way, and what a reader says when the file changes under it."""

import errno
import faulthandler
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardcache
from shardcache import Cache, CachedDataset, DamagedError, DamagedShardError, UsageError
from shardcache.format import leases, mounts, spec
from shardcache.read import blocks
from tests.format.leasing import lease
from tests.read.sources import SOURCES, numbers

CacheOf = Callable[..., Cache]


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    leases.close_all()
    gc.collect()  # a traceback that was caught holds its leases


@pytest.fixture
def copied(cache_of: CacheOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache_of("images").path, tmp_path / "cache"))


@pytest.mark.parametrize("name", ["images", "texts", "detections"])
def test_both_ways_give_the_same_samples(cache_of: CacheOf, name: str):
    cache = cache_of(name)
    by_copy, by_map = cache.with_io("pread"), cache.with_io("mmap")
    assert [repr(sample) for sample in by_copy] == [repr(sample) for sample in by_map]


def test_a_batch_is_the_same_by_either_way_and_for_any_number_of_workers(cache_of: CacheOf):
    def batches(io: str, workers: int) -> list[list[int]]:
        dataset = CachedDataset(cache_of("numbers").path, batch_size=16, shuffle=True, io=io)
        return numbers(dataset.loader(workers))

    assert batches("mmap", 0) == batches("pread", 0) == batches("pread", 2)


def test_how_a_cache_is_read_is_said_and_goes_along_to_views_and_workers(cache_of: CacheOf):
    cache = cache_of("images").with_io("pread")
    assert cache.info()["io"] == "pread"
    assert pickle.loads(pickle.dumps(cache)).info()["io"] == "pread"
    assert cache.select([3, 1]).info()["io"] == "pread"
    assert CachedDataset(cache, batch_size=4, shuffle=True).cache.info()["io"] == "pread"
    assert CachedDataset(cache, batch_size=4, shuffle=True, io="mmap").cache.info()["io"] == "mmap"


def test_an_unknown_way_is_refused(cache_of: CacheOf):
    with pytest.raises(UsageError, match="io must be 'auto', 'mmap' or 'pread', was 'fast'"):
        shardcache.open(cache_of("images").path, io="fast")


def test_a_network_file_system_is_read_without_a_map(cache_of: CacheOf, tmp_path: Path, monkeypatch):
    assert shardcache.open(cache_of("images").path).info()["io"] == "mmap"
    where = os.path.realpath(cache_of("images").path)
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {where.replace(' ', chr(92) + '040')} rw - nfs4 b rw\n")
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    assert shardcache.open(cache_of("images").path).info()["io"] == "pread"
    assert shardcache.open(cache_of("images").path, io="mmap").info()["io"] == "mmap"


def test_a_file_that_is_truncated_under_a_reader_is_an_error(copied: Path):
    cache = shardcache.open(copied, io="pread")
    path, seal = copied / spec.shard_name(0), cache.manifest.shards[0]
    with lease(path, seal, "shard 00000", "pread") as reader:
        assert len(reader.get(spec.INDEX_KEY))
        os.truncate(path, 4096)
        with pytest.raises(DamagedShardError, match=r"shard 00000: ends after \d+ bytes, must have \d+ or more"):
            reader.get(spec.INDEX_KEY)
    with pytest.raises(DamagedShardError, match=r"shard 00000: must have \d+ bytes, has 4096"):
        list(cache)


def test_values_that_are_overwritten_under_a_reader_are_an_error(copied: Path):
    dataset = CachedDataset(copied, batch_size=4, order="stored", io="pread")
    batches = iter(dataset)
    next(batches)
    for file in copied.glob("shard-*.lmdb"):
        with file.open("r+b") as opened:
            opened.seek(8192)
            opened.write(os.urandom(file.stat().st_size - 8192))
    with pytest.raises(DamagedError, match="shard 0000"):
        list(batches)


def test_a_truncated_file_ends_no_process(copied: Path):
    """The control: through a map, the same reader is gone with SIGBUS."""
    context = multiprocessing.get_context("fork")

    def read(io: str) -> None:
        faulthandler.disable()
        cache = shardcache.open(copied, io=io)
        path = copied / spec.shard_name(0)
        with lease(path, cache.manifest.shards[0], "shard 00000", io) as reader:
            os.truncate(path, 0)
            try:
                bytes(reader.get(spec.INDEX_KEY))
            except DamagedError:
                os._exit(3)
        os._exit(0)

    whole = (copied / spec.shard_name(0)).read_bytes()
    for io, code in [("pread", 3), ("mmap", -7)]:
        (copied / spec.shard_name(0)).write_bytes(whole)
        process = context.Process(target=read, args=(io,))
        process.start()
        process.join(60)
        assert process.exitcode == code


def test_what_the_system_refuses_is_an_error_that_names_the_shard(copied: Path, monkeypatch):
    cache = shardcache.open(copied, io="pread")
    cache[0]
    real, real_into = os.pread, os.preadv
    for code in (errno.EIO, errno.ESTALE):

        def refuse(*args: Any, code: int = code) -> Any:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "pread", refuse)
        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(DamagedError, match=rf"shard 0000\d: cannot be read at byte \d+: {os.strerror(code)}"):
            cache[list(range(1, len(cache)))]
    monkeypatch.setattr(os, "pread", lambda fd, count, offset: real(fd, max(1, count // 3), offset))
    monkeypatch.setattr(
        os, "preadv", lambda fd, out, offset: real_into(fd, [out[0][: max(1, len(out[0]) // 3)]], offset)
    )
    leases.close_all()
    assert repr(cache[7]) == repr(SOURCES["images"][7])  # a short read is gone on with


def test_blocks_in_the_buffer_keep_no_more_files_open_than_there_may_be(tmp_path: Path, monkeypatch):
    """What lies in the map of a shard keeps its file open: of a cache of more shards it is copied."""
    texts = [str(number) * 100 for number in range(400)]
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 512)
    built = shardcache.build(texts, tmp_path / "cache", codec="none", block_bytes=512, num_workers=0, progress=False)
    shards = len(built.manifest.shards)
    monkeypatch.setattr(leases, "MAX_OPEN", 4)
    for most in (4, shards):
        monkeypatch.setattr(blocks, "MAX_OPEN", most)
        batches = iter(CachedDataset(built.path, batch_size=100, shuffle=True))
        assert len(next(batches)) == 100
        links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        is_bounded = sum(link.startswith(f"{built.path}/shard-") for link in links) <= 4
        assert is_bounded == (most == 4)
        del batches
        leases.close_all()
        gc.collect()


def test_descriptors_are_bounded_and_closed(copied: Path):
    leases.close_all()
    before = len(os.listdir("/proc/self/fd"))
    cache = shardcache.open(copied, io="pread")
    assert cache[5][1] == 0
    assert len(os.listdir("/proc/self/fd")) > before
    del cache
    leases.close_all()
    assert len(os.listdir("/proc/self/fd")) == before


def _modules_and_maps(batch: object) -> tuple[list[str], int]:
    shards = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "shard-" in line}
    return sorted(sys.modules), len(shards)


def _fresh_maps(batch: object) -> int:
    return Path("/proc/self/maps").read_text().count("/fresh/shard-")


@pytest.mark.parametrize(("io", "maps"), [("auto", False), ("mmap", True)])
def test_a_worker_maps_shards_only_where_that_was_asked_for(cache_of: CacheOf, tmp_path: Path, io: str, maps: bool):
    shutil.copytree(cache_of("numbers").path, tmp_path / "fresh")  # nobody else has it mapped
    dataset = CachedDataset(
        tmp_path / "fresh",
        batch_size=16,
        shuffle=True,
        io=io,
        shuffle_buffer=64,
        batch_transform=_fresh_maps,
    )
    assert [bool(mapped) for mapped in dataset.loader(2)] == [maps] * len(dataset)


def test_a_forked_worker_loads_no_module_of_its_own(cache_of: CacheOf):
    """Each worker would have it in memory of its own."""
    program = f"""if True:
        import sys
        from tests.read.test_io import _modules_and_maps
        from shardcache import CachedDataset

        dataset = CachedDataset(
            {str(cache_of("numbers").path)!r}, batch_size=16, shuffle=True, shuffle_buffer=64,
            batch_transform=_modules_and_maps,
        )
        workers = [name for names, _ in dataset.loader(1, multiprocessing_context="fork") for name in names]
        print(sorted(set(workers) - set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout
