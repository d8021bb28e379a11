"""repair: real damage, real datasets, real kills."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import msgspec
import pytest

import shardcache
from shardcache.errors import BuildInProgressError, ManifestError, StorageError
from shardcache.format import manifest, spec
from tests.integrity.conftest import contents
from tests.integrity.sources import Numbered

ROOT = Path(__file__).parents[2]


def flip(path: Path, at: int = -2000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def shard(path: Path, number: int) -> Path:
    return path / spec.shard_name(number)


@pytest.mark.parametrize("workers", [0, 2])
def test_exactly_the_damaged_shards_are_built_again_and_the_cache_is_what_it_was(sound, copied, workers: int):
    flip(shard(copied, 1))
    os.truncate(shard(copied, 3), 5000)
    before = {name: os.stat(copied / name).st_ino for name in contents(copied)}
    done = shardcache.repair(copied, Numbered, num_workers=workers, progress=False)
    assert done
    assert done.restored == (1, 3)
    assert contents(copied) == contents(sound)
    changed = {name for name, inode in before.items() if os.stat(copied / name).st_ino != inode}
    assert changed == {spec.shard_name(1), spec.shard_name(3)}
    assert sorted(os.listdir(copied.parent)) == ["cache"]


@pytest.mark.parametrize("what", ["gone", "directory", "link", "fifo", "another shard"])
def test_whatever_stands_in_a_shards_place_is_replaced(sound, copied, what: str):
    path = shard(copied, 2)
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "link":
        path.symlink_to(shard(sound, 2))
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "another shard":
        path.write_bytes(shard(copied, 1).read_bytes())
    assert shardcache.repair(copied, Numbered, progress=False).restored == (2,)
    assert contents(copied) == contents(sound)
    assert not path.is_symlink()


def test_a_directory_of_somebodys_is_not_deleted(copied):
    path = shard(copied, 2)
    path.unlink()
    path.mkdir()
    (path / "thesis.tex").touch()
    with pytest.raises(StorageError, match="not empty"):
        shardcache.repair(copied, Numbered, progress=False)
    assert (path / "thesis.tex").exists()


def test_a_sound_cache_is_left_alone(sound, copied):
    done = shardcache.repair(copied, Numbered, progress=False)
    assert done
    assert done.restored == ()
    assert contents(copied) == contents(sound)


def test_what_a_repair_has_left_that_was_killed_when_all_was_done_is_removed(copied):
    left = copied.with_name(copied.name + ".repair")
    left.mkdir()
    (left / "shard-00000.lmdb").write_bytes(b"of the repair before")
    lock = filelock.FileLock(left / "lock")
    with lock:  # which is not at its end
        assert shardcache.repair(copied, Numbered, progress=False)
        assert left.exists()
    assert shardcache.repair(copied, Numbered, progress=False)
    assert not left.exists()


def test_a_dataset_that_has_changed_makes_a_new_cache_beside(sound, copied):
    flip(shard(copied, 1))
    before = contents(copied)
    done = shardcache.repair(copied, Numbered, kwargs={"offset": 1}, progress=False)
    assert not done
    assert (done.restored, done.differing) == ((), (1,))
    assert "the dataset gives other samples" in done.reasons[0]
    assert contents(copied) == before
    assert done.beside == copied.with_name("cache.repaired")
    assert shardcache.verify(done.beside)
    assert shardcache.open(done.beside)[5]["label"] == 6


def test_a_dataset_of_another_length_is_not_even_read_for_the_old_cache(copied):
    flip(shard(copied, 1))
    out = copied.with_name("new")
    done = shardcache.repair(copied, Numbered, kwargs={"size": 100}, out=out, progress=False)
    assert done.reasons == ("the dataset had 160 samples, has 100 now",)
    assert len(shardcache.open(out)) == 100


def test_other_versions_are_named_as_the_reason(copied):
    found = manifest.read(copied)
    seals = [msgspec.structs.replace(seal, sha256="0" * 64) for seal in found.shards]
    changed = msgspec.structs.replace(found, written_by={"zstd": "1.0.1", "lmdb": "0.9.1"}, shards=tuple(seals))
    (copied / spec.MANIFEST_NAME).write_bytes(manifest.encode(changed))
    done = shardcache.repair(copied, Numbered, progress=False)
    assert not done.restored
    assert len(done.differing) == len(seals)
    assert "the cache was written with zstd 1.0.1, here is" in done.reasons[0]


def test_without_a_manifest_nothing_can_be_repaired(copied):
    flip(copied / spec.MANIFEST_NAME, 40)
    with pytest.raises(ManifestError, match=r"no shard can be told from a wrong one.*build the cache anew"):
        shardcache.repair(copied, Numbered, progress=False)


def test_two_repairs_do_not_meet(copied):
    flip(shard(copied, 1))
    workshop = copied.with_name("cache.repair")
    workshop.mkdir()
    with (
        filelock.FileLock(workshop / "lock"),
        pytest.raises(BuildInProgressError, match="another process is repairing"),
    ):
        shardcache.repair(copied, Numbered, progress=False)
    assert shardcache.repair(copied, Numbered, progress=False)


def test_readers_go_on_meanwhile(copied):
    cache = shardcache.open(copied)
    before = [cache[index]["label"] for index in range(160)]
    flip(shard(copied, 1))
    assert shardcache.repair(copied, Numbered, progress=False)
    assert [cache[index]["label"] for index in range(160)] == before


REPAIR = """
import sys
import shardcache
from tests.integrity.sources import Numbered
print("ready", flush=True)
shardcache.repair(sys.argv[1], Numbered, kwargs={"sleep": 0.002}, progress=False)
"""


def test_a_repair_that_is_killed_leaves_what_the_next_one_finishes(sound, copied):
    whole = contents(sound)
    numbers = range(len(list(sound.glob("shard-*"))))
    for number in numbers:
        flip(shard(copied, number))
    broken = contents(copied)
    for moment in range(5):
        process = subprocess.Popen([sys.executable, "-c", REPAIR, copied], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.Random(moment).uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for name, data in contents(copied).items():
            assert data in (whole[name], broken[name])
    assert shardcache.repair(copied, Numbered, progress=False)
    assert contents(copied) == whole
    assert sorted(os.listdir(copied.parent)) == ["cache"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written_is_an_error(copied):
    flip(shard(copied, 1))
    copied.chmod(0o555)
    with pytest.raises(StorageError, match="cannot be written"):
        shardcache.repair(copied, Numbered, progress=False)
