"""Caches of machines with other pages are read; those of another byte order are refused."""

import struct
import sys
from pathlib import Path

import msgspec
import pytest

import shardcache
from shardcache.errors import DamagedShardError, FormatVersionError
from shardcache.format import manifest, pages, spec
from tests.exact import exact
from tests.golden.contents import samples
from tests.strategies import QUIET

GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "tensors"

pytestmark = QUIET


def shard_of_pages(values: dict[bytes, bytes], size: int, order: str = "<") -> bytes:
    """A shard as LMDB lays it out with pages of ``size`` bytes: two meta pages, one leaf, the large values."""
    nodes, runs, number = [], [], 3
    for key, value in sorted(values.items()):
        large = 16 + len(value) > size // 4
        body = struct.pack(order + "Q", number) if large else value
        node = struct.pack(order + "IHH", len(value), int(large), len(key)) + key + body
        nodes.append(node + bytes(len(node) % 2))
        if large:
            count = (len(value) + 15) // size + 1
            run = struct.pack(order + "QHHI", number, 0, 4, count) + value
            runs.append(run.ljust(count * size, b"\0"))
            number += count
    at, offsets, tail = size, [], b""
    for node in nodes:
        at -= len(node)
        offsets.append(at)
        tail = node + tail
    lower = 16 + 2 * len(nodes)
    assert lower <= at, "one leaf page must do"
    leaf = struct.pack(order + "QHHHH", 2, 0, 2, lower, at) + struct.pack(f"{order}{len(offsets)}H", *offsets)
    leaf = leaf.ljust(at, b"\0") + tail
    overflow = sum(len(run) for run in runs) // size
    metas = []
    for page in range(2):
        head = struct.pack(order + "Q4HII", page, 0, 8, 0, 0, 0xBEEFC0DE, 1) + struct.pack(order + "QQ", 0, 1 << 40)
        free = struct.pack(order + "IHHQQQQQ", size, 8, 0, 0, 0, 0, 0, (1 << 64) - 1)
        main = struct.pack(order + "IHHQQQQQ", 0, 0, 1, 0, 1, overflow, len(values), 2)
        metas.append((head + free + main + struct.pack(order + "QQ", number - 1, page)).ljust(size, b"\0"))
    return b"".join([*metas, leaf, *runs])


def moved(to: Path, size: int, order: str = "<") -> Path:
    """The golden cache with shards of other pages."""
    found, seals = manifest.read(GOLDEN), []
    to.mkdir()
    for number in range(len(found.shards)):
        source, path = GOLDEN / spec.shard_name(number), to / spec.shard_name(number)
        data = source.read_bytes()
        with source.open("rb") as file:
            values = {key: data[at : at + n] for key, at, n in pages.values(file.fileno(), len(data), "golden")}
        path.write_bytes(shard_of_pages(values, size, order))
        if order == "<":
            with path.open("rb") as file:
                seals.append(pages.seal(file.fileno(), "crafted"))
        else:
            seals.append(msgspec.structs.replace(found.shards[number], file_bytes=path.stat().st_size))
    changed = msgspec.structs.replace(found, page_bytes=min(size, 32768), shards=tuple(seals))
    (to / spec.MANIFEST_NAME).write_bytes(manifest.encode(changed))
    return to


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("size", [8192, 16384, 32768])
def test_a_cache_of_a_machine_with_larger_pages_is_read(tmp_path: Path, size: int, io: str):
    path = moved(tmp_path / "cache", size)
    cache = shardcache.open(path, io=io)
    assert [exact(sample) for sample in cache[:]] == [exact(sample) for sample in samples("tensors")]
    assert shardcache.verify(path)


def test_pages_that_lmdb_does_not_have_are_refused(tmp_path: Path):
    """Where the system's pages have 64 KiB, LMDB takes 32 KiB: an offset in a page has 16 bits."""
    with pytest.raises(DamagedShardError, match="page 0 says pages of 65536 bytes"):
        moved(tmp_path / "cache", 65536)


def test_a_shard_of_the_other_byte_order_is_refused_and_not_misread(tmp_path: Path):
    path = moved(tmp_path / "cache", 16384, ">")
    with pytest.raises(DamagedShardError, match="page 0 is not a meta page of LMDB's data format 1"):
        shardcache.open(path)[0]


def test_a_big_endian_machine_says_that_it_cannot_read_caches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(FormatVersionError, match="caches are little-endian, this machine is not"):
        shardcache.open(GOLDEN)
