"""Writing shards and reading them: round trips, faults of the file, faults of the file system."""

import hashlib
import mmap
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb
import pytest

from shardcache.errors import (
    CacheExistsError,
    DamagedShardError,
    MissingShardError,
    ShardCacheError,
    StorageError,
    UsageError,
)
from shardcache.format import pages, shard
from shardcache.format.leases import close_all
from shardcache.format.pages import ShardSeal
from shardcache.format.shard import ShardWriter
from tests.format.leasing import lease
from tests.format.test_pages import PAGE, plain_walk, write_shard

ROOT = Path(__file__).parents[2]
NAME = "shard 00012"
REPAIR = "(the file is damaged; run 'shardcache verify')"


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def in_a_process(call: str, **options: object) -> None:
    """Run a function of this module where a signal, a warning or a leaked error is seen."""
    module, _, function = call.partition(":")
    script = f"import {module}; {module}.{function}"
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def read_all(path: Path, seal: ShardSeal, count: int) -> list[bytes]:
    with lease(path, seal, NAME) as reader:
        return [bytes(reader.get(key(number))) for number in range(count)]


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    directory.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield directory
    finally:
        close_all()
        subprocess.run(["umount", directory], check=True)


@pytest.fixture
def made(tmp_path) -> tuple[Path, ShardSeal, list[bytes]]:
    draw = random.Random(1)
    contents = [draw.randbytes(draw.choice([0, 3, 700, 5000, 60_000])) for _ in range(120)]
    return tmp_path / "shard", write_shard(tmp_path / "shard", contents), contents


class TestWriting:
    @pytest.mark.parametrize(
        ("size", "count"),
        [(0, 1), (1, 1), (16, 5000), (2021, 50), (2022, 50), (2023, 50), (1 << 17, 300), (1 << 24, 3)],
    )
    def test_what_comes_out_is_what_went_in(self, tmp_path, size, count):
        block = random.Random(size).randbytes(size)
        contents = [number.to_bytes(8, "big")[-min(size, 8) :] + block[8:] if size else b"" for number in range(count)]
        seal = write_shard(tmp_path / "shard", contents)
        assert read_all(tmp_path / "shard", seal, count) == contents

    def test_values_may_be_any_buffer(self, tmp_path):
        with ShardWriter(tmp_path / "shard") as writer:
            writer.put(key(0), b"bytes")
            writer.put(key(1), bytearray(b"bytearray"))
            writer.put(key(2), memoryview(b"memoryview")[6:])
            writer.put(b"\xff" * 8, memoryview(struct.pack("<3I", 1, 2, 3)).cast("I"))
            seal = writer.finish()
        assert read_all(tmp_path / "shard", seal, 3) == [b"bytes", b"bytearray", b"view"]
        with lease(tmp_path / "shard", seal, NAME) as reader:
            assert reader.get(b"\xff" * 8) == struct.pack("<3I", 1, 2, 3)

    def test_the_seal_says_what_the_file_is(self, made):
        path, seal, _ = made
        assert seal.file_bytes == path.stat().st_size
        assert seal.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        with path.open("rb") as file:
            assert seal.structure == pages.structure(file.fileno(), seal.file_bytes, NAME)
            assert pages.seal(file.fileno(), NAME) == seal

    def test_the_same_puts_give_the_same_bytes_in_any_process(self, tmp_path):
        build_varied(tmp_path / "here")
        for seed in "1", "2":
            path = tmp_path / seed
            environment = os.environ | {"PYTHONHASHSEED": seed, "MALLOC_PERTURB_": "17" * int(seed)}
            in_a_process(f"tests.format.test_shard:build_varied({str(path)!r})", env=environment)
            assert path.read_bytes() == (tmp_path / "here").read_bytes()

    def test_only_the_file_itself_is_made_with_the_permissions_that_the_umask_leaves(self, tmp_path):
        old = os.umask(0o027)
        try:
            seal = write_shard(tmp_path / "shard", [b"x" * 5000])
        finally:
            os.umask(old)
        read_all(tmp_path / "shard", seal, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["shard"]
        assert (tmp_path / "shard").stat().st_mode & 0o777 == 0o640

    def test_a_transaction_is_committed_every_16_mib_of_values(self, tmp_path):
        seal = write_shard(tmp_path / "shard", [b"x" * (1 << 20)] * 40)
        data = (tmp_path / "shard").read_bytes()
        assert max(struct.unpack_from("<Q", data, number * PAGE + 144)[0] for number in (0, 1)) == 3
        assert seal.file_bytes == len(data)

    @pytest.mark.parametrize("occupy", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere"), os.mkfifo])
    def test_an_existing_path_is_never_overwritten(self, tmp_path, occupy):
        occupy(tmp_path / "shard")
        before = (tmp_path / "shard").lstat()
        with pytest.raises(CacheExistsError, match="must not exist"):
            ShardWriter(tmp_path / "shard")
        assert (tmp_path / "shard").lstat() == before

    @pytest.mark.parametrize("bad", [key(5), key(4), b"", b"short", b"longer than eight"])
    def test_a_key_that_does_not_ascend_or_has_not_eight_bytes_is_refused(self, tmp_path, bad):
        with ShardWriter(tmp_path / "shard") as writer:
            writer.put(key(5), b"x")
            with pytest.raises(UsageError, match=r"must have 8 bytes and be above 0000000000000005"):
                writer.put(bad, b"x")
            writer.put(key(6), b"y")
            assert writer.finish().file_bytes

    def test_a_value_beyond_what_lmdb_can_hold_is_refused(self, tmp_path):
        with mmap.mmap(-1, shard.MAX_VALUE_BYTES + 1) as untouched, ShardWriter(tmp_path / "shard") as writer:
            with pytest.raises(StorageError, match="a value must have at most 4294967295 bytes, has 4294967296"):
                writer.put(key(1), untouched)
            writer.finish()

    def test_a_writer_that_does_not_finish_leaves_nothing(self, tmp_path):
        with ShardWriter(tmp_path / "one") as writer:
            writer.put(key(1), b"x" * 20_000_000)
        with pytest.raises(KeyError), ShardWriter(tmp_path / "two") as writer:
            writer.put(key(1), {}["absent"])
        writer = ShardWriter(tmp_path / "three")
        writer.abort()
        writer.abort()
        assert list(tmp_path.iterdir()) == []

    def test_a_finished_writer_is_over_and_its_file_stays(self, tmp_path):
        with ShardWriter(tmp_path / "shard") as writer:
            writer.finish()
            for call in writer.finish, lambda: writer.put(key(1), b""):
                with pytest.raises(UsageError, match="this shard is closed"):
                    call()
            writer.abort()
        assert (tmp_path / "shard").stat().st_size == 2 * PAGE

    @pytest.mark.parametrize("room", [0, 4096, 100_000, 3 << 20])
    def test_a_full_disk_is_called_a_full_disk_and_nothing_is_left(self, tmp_path, room):
        with small_disk(tmp_path / "disk", 4 << 20) as disk:
            (disk / "other").write_bytes(b"x" * ((4 << 20) - room))
            with pytest.raises(StorageError, match=r"shard: disk full \(\d+ bytes were free\)"):  # noqa: PT012
                writer = ShardWriter(disk / "shard")
                for number in range(300):
                    writer.put(key(number), b"x" * (1 << 17))
                writer.finish()
            assert [path.name for path in disk.iterdir()] == ["other"]

    def test_a_directory_that_is_not_there_or_cannot_be_written_is_named(self, tmp_path):
        with pytest.raises(StorageError, match=r"absent/shard: cannot be written: No such file or directory"):
            ShardWriter(tmp_path / "absent" / "shard")
        with as_another_user() as directory:
            in_a_process(f"tests.format.test_shard:expect_no_permission({str(directory)!r})")

    def test_a_lack_of_addresses_is_a_storage_error(self, tmp_path):
        in_a_process(f"tests.format.test_shard:write_with_few_addresses({str(tmp_path / 'shard')!r})")
        assert list(tmp_path.iterdir()) == []


class TestReading:
    def test_values_are_views_without_a_copy_and_read_only(self, made):
        path, seal, contents = made
        with lease(path, seal, NAME) as reader:
            view = reader.get(key(7))
            assert (type(view), view.format, view.readonly) == (memoryview, "B", True)
            assert view == contents[7]

    def test_a_missing_key_is_damage_that_names_it(self, made):
        path, seal, _ = made
        with lease(path, seal, NAME) as reader:
            for absent in key(120), b"", b"x" * 700:
                with pytest.raises(DamagedShardError, match=f"{NAME}: .*key {absent.hex()}"):
                    reader.get(absent)
            assert reader.get(key(1)) is not None

    @pytest.mark.parametrize(
        ("what", "fault"),
        {
            "must be a regular file, is a directory": lambda path: (path.unlink(), path.mkdir()),
            "must be a regular file, is a named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
            "must be a regular file, is a symbolic link": lambda path: (
                path.rename(path.with_name("x")).parent and path.symlink_to("x")
            ),
            "must be a regular file, is a device": lambda path: (
                path.unlink(),
                os.mknod(path, 0o20666, os.makedev(1, 5)),
            ),
            "bytes, has 0": lambda path: os.truncate(path, 0),
            "bytes, has 8192": lambda path: os.truncate(path, 8192),
            "bytes, has 40960000": lambda path: os.truncate(path, 40_960_000),
            "bytes, has 12288": lambda path: (path.unlink(), write_shard(path, [b"another"])),
            "page 0 is not a meta page": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        }.items(),
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_not_the_file_is_refused(self, made, what, fault):
        path, seal, contents = made
        assert read_all(path, seal, 120) == contents
        for opened in True, False:
            if opened:
                try:
                    fault(path)
                except PermissionError:
                    pytest.skip("making a device needs root")
            else:
                close_all()
            with pytest.raises(DamagedShardError) as caught, lease(path, seal, NAME):
                pass
            assert what in str(caught.value)
            assert str(caught.value).startswith(f"{NAME}: ")
            assert str(caught.value).endswith(REPAIR)

    @pytest.mark.parametrize("absent", ["absent", "shard/file", "absent/shard"])
    def test_a_file_that_is_not_there_is_missing(self, made, absent):
        path = made[0].parent / absent
        with pytest.raises(MissingShardError, match=f"{NAME}: must be the file {path}, which does not exist"):
            lease(path, made[1], NAME).__enter__()

    def test_a_shard_of_the_same_size_with_other_keys_is_refused(self, made):
        path, seal, contents = made
        path.unlink()
        with ShardWriter(path) as writer:
            for number, value in enumerate(contents):
                writer.put(key(number + (number == 119)), value)
            other = writer.finish()
        assert other.file_bytes == seal.file_bytes
        with pytest.raises(DamagedShardError, match=f"structure must be {seal.structure}, is {other.structure}"):
            read_all(path, seal, 120)

    def test_flipped_bits_in_the_tree_are_refused_and_others_change_no_key(self, made):
        in_a_process(f"tests.format.test_shard:flip_everywhere({str(made[0])!r})")

    def test_a_tree_that_was_damaged_and_sealed_again_harms_nobody(self, made):
        in_a_process(f"tests.format.test_shard:seal_what_is_damaged({str(made[0])!r})")

    def test_a_file_that_lmdb_has_open_in_this_process_is_read_all_the_same(self, made):
        path, seal, contents = made
        close_all()
        env = lmdb.open(str(path), readonly=True, lock=False, subdir=False)
        assert read_all(path, seal, 120) == contents
        env.close()

    def test_what_lmdb_reads_is_what_is_read(self, made):
        path, seal, contents = made
        with lmdb.open(str(path), readonly=True, lock=False, subdir=False) as env, env.begin() as txn:
            assert [bytes(txn.get(key(number))) for number in range(120)] == contents
        assert read_all(path, seal, 120) == contents

    def test_a_read_only_file_in_a_read_only_directory_is_read_by_anybody_and_nothing_is_written(self):
        with as_another_user() as directory:
            seal = write_shard(directory / "shard", [b"x" * 5000])
            (directory / "shard").chmod(0o444)
            directory.chmod(0o555)
            before = [(path, path.stat()) for path in (directory, directory / "shard")]
            call = f"read_as_anybody({str(directory / 'shard')!r}, {seal.file_bytes}, {seal.structure!r})"
            in_a_process(f"tests.format.test_shard:{call}")
            after = [(path, path.stat()) for path in (directory, directory / "shard")]
            assert [(path, s.st_mtime_ns, s.st_size) for path, s in before] == [
                (path, s.st_mtime_ns, s.st_size) for path, s in after
            ]
            (directory / "shard").chmod(0o400)
            call = f"expect_unreadable({str(directory / 'shard')!r}, {seal.file_bytes})"
            in_a_process(f"tests.format.test_shard:{call}")

    def test_too_many_open_files_are_a_storage_error(self, made):
        path, seal, _ = made
        call = f"read_with_few_descriptors({str(path)!r}, {seal.file_bytes}, {seal.structure!r})"
        in_a_process(f"tests.format.test_shard:{call}")


@contextmanager
def as_another_user() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        close_all()
        shutil.rmtree(directory)


# What the tests above run in a process of its own.


def build_varied(path: str) -> None:
    draw = random.Random(5)
    with ShardWriter(Path(path)) as writer:
        for number in range(500):
            writer.put(key(number), draw.randbytes(draw.choice([0, 9, 1900, 2200, 70_000, 300_000])))
        writer.finish()


def become_another_user() -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_shard(
            Path(directory) / "shard", []
        )  # lmdb imports something when it is first used: while that can be read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def expect_no_permission(directory: str) -> None:
    become_another_user()
    with pytest.raises(StorageError, match="shard: cannot be written: Permission denied"):
        ShardWriter(Path(directory) / "shard")


def expect_unreadable(path: str, file_bytes: int) -> None:
    become_another_user()
    with pytest.raises(StorageError, match=f"{NAME}: {path} cannot be opened: Permission denied"):
        lease(Path(path), ShardSeal(file_bytes, "", ""), NAME).__enter__()


def read_as_anybody(path: str, file_bytes: int, structure: str) -> None:
    become_another_user()
    assert read_all(Path(path), ShardSeal(file_bytes, structure, ""), 1) == [b"x" * 5000]


def write_with_few_addresses(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    with pytest.raises(StorageError, match="shard: cannot be written: Cannot allocate memory"):
        ShardWriter(Path(path))


def read_with_few_descriptors(path: str, file_bytes: int, structure: str) -> None:
    seal = ShardSeal(file_bytes, structure, "")
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for _ in range(2):  # one to open it, one that the map keeps
        with pytest.raises(StorageError, match=f"{NAME}: {path} cannot be opened: Too many open files"):
            read_all(Path(path), seal, 1)
        os.close(taken.pop())
    assert len(read_all(Path(path), seal, 120)) == 120


def flip_everywhere(path: str) -> None:
    original = Path(path).read_bytes()
    with Path(path).open("rb") as file:
        seal = pages.seal(file.fileno(), NAME)
    tree, found = plain_walk(original)
    contents, draw, refused = read_all(Path(path), seal, 120), random.Random(6), 0
    for trial in range(200):
        page = draw.choice(tree) if trial % 2 else draw.randrange(len(original) // PAGE)
        at = page * PAGE + draw.randrange(PAGE)
        copy = Path(f"{path}-{trial}")
        copy.write_bytes(original[:at] + bytes([original[at] ^ 1 << draw.randrange(8)]) + original[at + 1 :])
        try:
            with lease(copy, seal, NAME) as reader:
                assert page not in tree
                for number, content in enumerate(contents):
                    view = reader.get(key(number))
                    assert len(view) == len(content)
                    wrong = view != content
                    assert wrong == (found[number][1] <= at < found[number][1] + found[number][2])
        except DamagedShardError:
            assert page in tree
            refused += 1
        copy.unlink()
        close_all()
    assert refused > 100


def seal_what_is_damaged(path: str) -> None:
    original = Path(path).read_bytes()
    tree, draw, read, refused = plain_walk(original)[0], random.Random(7), 0, 0
    for trial in range(500):
        data = bytearray(original)
        for _ in range(draw.choice([1, 1, 3])):
            at = draw.choice(tree) * PAGE + draw.choice([draw.randrange(200), draw.randrange(PAGE)])
            data[at] = draw.choice([0, 255, data[at] ^ 1 << draw.randrange(8)])
        copy = Path(f"{path}-{trial}")
        try:
            with copy.open("xb+", buffering=0) as file:
                file.write(data)
                structure = pages.structure(file.fileno(), len(data), NAME)
            with lease(copy, ShardSeal(len(data), structure, ""), NAME) as reader:
                for number in range(121):
                    try:
                        hashlib.sha256(reader.get(key(number)))
                    except DamagedShardError:
                        refused += 1
            read += 1
        except ShardCacheError:
            pass
        copy.unlink()
        close_all()
    assert read > 100
