"""One pass over a shard: real shards of every shape that LMDB makes of values."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from shardcache.errors import DamagedShardError
from shardcache.format import pages, shard
from shardcache.format.leases import ShardFile
from shardcache.integrity.scan import WINDOW_BYTES, Scan

SIZES = {
    "none": [],
    "small ones, in the tree": [0, 1, 100] * 300,
    "in runs of pages": [3000, 10_000, 130_000] * 60,
    "both": [130_000, 8] * 150,
    "more than a commit": [200_000, 40] * 200,
    "larger than the window": [50, 3 * WINDOW_BYTES, 100_000, WINDOW_BYTES, 20, 2 * WINDOW_BYTES + 1, 5000],
}


@pytest.fixture(params=SIZES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> ShardFile:
    path, random = tmp_path / "shard", np.random.default_rng(0)
    with shard.ShardWriter(path) as writer:
        for number, size in enumerate(SIZES[request.param]):
            writer.put((2 * number).to_bytes(8, "big"), random.bytes(size))
        return ShardFile(path, writer.finish(), "shard 00007")


def places(file: ShardFile) -> list[tuple[bytes, int, int]]:
    with file.path.open("rb") as opened:
        return list(pages.values(opened.fileno(), file.seal.file_bytes, file.name))


@pytest.fixture
def scan(file: ShardFile) -> Iterator[Scan]:
    with closing(Scan(file)) as made:
        yield made


def test_every_value_is_what_was_put_and_stays_that_and_the_sha256_is_that_of_the_file(file: ShardFile, scan: Scan):
    data = file.path.read_bytes()
    found = [scan.value(key) for key, _, _ in places(file)]  # all are kept while the window goes on
    assert [bytes(value) for value in found] == [data[at : at + size] for _, at, size in places(file)]
    assert scan.sha256() == hashlib.sha256(data).hexdigest() == file.seal.sha256
    assert scan.unasked() == (0, b"")


def test_the_sha256_is_right_whatever_was_asked_for(file: ShardFile, scan: Scan):
    data = file.path.read_bytes()
    for key, at, size in places(file)[::-7]:
        assert scan.peek(key) == data[at : at + size]
    for key, at, size in places(file)[::5] + places(file)[::-3]:
        assert scan.value(key) == data[at : at + size]
    assert scan.sha256() == file.seal.sha256


def test_a_file_is_read_once(file: ShardFile, scan: Scan):
    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    values = places(file)
    before = read_so_far()
    for key, _, _ in values:
        scan.value(key)
    scan.sha256()
    small = sum(size for _, _, size in values if size <= 4096)
    assert read_so_far() - before < file.seal.file_bytes * 1.05 + small + 10_000


def test_what_nobody_asked_for_is_counted(file: ShardFile, scan: Scan):
    keys = [key for key, _, _ in places(file)]
    for key in keys[:1] + keys[3:]:
        scan.value(key)
    assert scan.unasked() == (len(keys[1:3]), (keys[1:2] or [b""])[0])


def test_a_value_that_is_missing_is_damage_and_does_not_end_the_pass(file: ShardFile, scan: Scan):
    for key in [(3).to_bytes(8, "big"), b"\xff" * 8]:
        with pytest.raises(DamagedShardError, match=f"shard 00007: must have a value of key {key.hex()}, has none"):
            scan.value(key)
    assert scan.sha256() == file.seal.sha256


def test_of_a_file_that_is_cut_what_is_left_can_still_be_had(file: ShardFile, scan: Scan):
    data, cut, values = file.path.read_bytes(), file.seal.file_bytes // 2, places(file)
    with file.path.open("r+b") as opened:
        opened.truncate(cut)
    for key, at, size in values:
        if at + size <= cut or not size:
            assert scan.value(key) == data[at : at + size]
        else:
            with pytest.raises(DamagedShardError, match="ends after"):
                scan.value(key)
    with pytest.raises(DamagedShardError, match="shard 00007: ends after"):
        scan.sha256()


def test_a_file_that_is_not_what_was_sealed_is_refused(file: ShardFile):
    data = bytearray(file.path.read_bytes())
    data[4096 + 30] ^= 1  # a page of the tree
    file.path.write_bytes(data)
    with pytest.raises(DamagedShardError, match="shard 00007"):
        Scan(file)
    file.path.write_bytes(data[:-1])
    with pytest.raises(DamagedShardError, match=r"must have \d+ bytes, has \d+"):
        Scan(file)
