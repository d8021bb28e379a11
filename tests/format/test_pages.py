"""The walk over a shard's pages: what it finds, what its digest covers, and what it refuses."""

import os
import random
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from shardcache.errors import DamagedShardError
from shardcache.format import pages
from shardcache.format.shard import ShardWriter, page_bytes
from tests.format.leasing import lease

PAGE = page_bytes()
META, LEAF, BRANCH = 8, 2, 1
NO_PAGE = 2**64 - 1


def write_shard(path: Path, values: list[bytes]) -> pages.ShardSeal:
    with ShardWriter(path) as writer:
        for number, value in enumerate(values):
            writer.put(number.to_bytes(8, "big"), value)
        return writer.finish()


@contextmanager
def reading(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("shard")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def structure(data: bytes) -> str:
    with reading(data) as fd:
        return pages.structure(fd, len(data), "shard 00007")


def values(data: bytes) -> list[tuple[bytes, int, int]]:
    with reading(data) as fd:
        return list(pages.values(fd, len(data), "shard 00007"))


def plain_walk(data: bytes) -> tuple[list[int], list[tuple[bytes, int, int]]]:
    """The pages and the values of a shard that is trusted, found the way the module's docstring tells."""
    number = max((0, 1), key=lambda n: struct.unpack_from("<Q", data, n * PAGE + 144)[0])
    found, pages_seen = [], [0, 1]

    def visit(page: int) -> None:
        start = page * PAGE
        pages_seen.append(page)
        kind, lower = struct.unpack_from("<HH", data, start + 10)
        for at in struct.unpack_from(f"<{(lower - 16) // 2}H", data, start + 16):
            low, high, flags, key_bytes = struct.unpack_from("<HHHH", data, start + at)
            if kind == BRANCH:
                visit(low | high << 16 | flags << 32)
                continue
            offset = start + at + 8 + key_bytes
            if flags:
                offset = struct.unpack_from("<Q", data, offset)[0] * PAGE + 16
            found.append((data[start + at + 8 : start + at + 8 + key_bytes], offset, low | high << 16))

    root = struct.unpack_from("<Q", data, number * PAGE + 128)[0]
    if root != NO_PAGE:
        visit(root)
    return pages_seen, found


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> bytes:
    """A root and some leaves, small values and large ones, several commits and what each of them leaves behind."""
    draw = random.Random(1)
    sizes = [draw.choice([0, 1, 90, 900, 2500, 9000]) for _ in range(400)]
    path = tmp_path_factory.mktemp("shards") / "shard"
    with pytest.MonkeyPatch.context() as patch, ShardWriter(path) as writer:
        patch.setattr("shardcache.format.shard.COMMIT_BYTES", 1 << 18)
        for number, size in enumerate(sizes):
            writer.put((3 * number).to_bytes(8, "big"), draw.randbytes(size))
        writer.finish()
    return path.read_bytes()


def test_every_value_is_found_where_a_plain_walk_finds_it(shard):
    assert values(shard) == plain_walk(shard)[1]


def test_every_value_is_found_where_lmdb_finds_it(tmp_path):
    draw = random.Random(2)
    contents = [draw.randbytes(draw.choice([0, 5, 1000, 3000, 140_000])) for _ in range(300)]
    seal = write_shard(tmp_path / "shard", contents)
    data = (tmp_path / "shard").read_bytes()
    with lease(tmp_path / "shard", seal, "shard 00007") as reader:
        for key, offset, size in values(data):
            assert data[offset : offset + size] == reader.get(key) == contents[int.from_bytes(key, "big")]


def test_a_deep_tree_is_walked_in_the_order_of_its_keys(tmp_path):
    seal = write_shard(tmp_path / "shard", [b"x" * 900] * 3000)
    data = (tmp_path / "shard").read_bytes()
    assert max(struct.unpack_from("<H", data, meta * PAGE + 94)[0] for meta in (0, 1)) == 3  # the depth
    assert structure(data) == seal.structure
    assert [int.from_bytes(key, "big") for key, _, _ in values(data)] == list(range(3000))


def test_a_shard_without_values_is_sound(tmp_path):
    seal = write_shard(tmp_path / "shard", [])
    data = (tmp_path / "shard").read_bytes()
    assert values(data) == []
    assert structure(data) == seal.structure


def test_the_digest_is_that_of_the_two_meta_pages_and_the_tree_in_preorder(shard):
    walked = b"".join(shard[number * PAGE : (number + 1) * PAGE] for number in plain_walk(shard)[0])
    assert structure(shard) == xxhash.xxh3_128_hexdigest(walked)


def test_values_feeds_the_digest_that_structure_gives(shard):
    digest = xxhash.xxh3_128()
    with reading(shard) as fd:
        assert len(list(pages.values(fd, len(shard), "shard 00007", digest))) == 400
    assert digest.hexdigest() == structure(shard)


def test_a_flipped_bit_shows_in_each_page_of_the_tree_and_in_no_other(shard):
    tree, digest, draw = set(plain_walk(shard)[0]), structure(shard), random.Random(3)
    with reading(shard) as fd:
        for number in range(len(shard) // PAGE):
            at = number * PAGE + draw.randrange(PAGE)
            os.pwrite(fd, bytes([shard[at] ^ 1 << draw.randrange(8)]), at)
            try:
                noticed = pages.structure(fd, len(shard), "shard 00007") != digest
            except DamagedShardError:
                noticed = True
            os.pwrite(fd, shard[at : at + 1], at)
            assert noticed == (number in tree)


def test_random_bytes_in_the_tree_raise_nothing_else(shard):
    tree, draw, refused = plain_walk(shard)[0], random.Random(4), 0
    with reading(shard) as fd:
        for _ in range(1500):
            for _ in range(draw.choice([1, 1, 2, 8])):
                at = draw.choice(tree) * PAGE + draw.choice([draw.randrange(160), draw.randrange(PAGE - 8)])
                size = draw.choice([1, 2, 8])
                os.pwrite(fd, draw.choice([draw.randbytes(size), b"\0" * size, b"\xff" * size]), at)
            try:
                pages.structure(fd, len(shard), "shard 00007")
            except DamagedShardError:
                refused += 1
            os.pwrite(fd, shard, 0)
    assert refused > 500


@settings(max_examples=150)
@given(st.binary(max_size=4 * 512), st.integers(0, 4 * 512))
def test_any_bytes_are_a_shard_or_damaged(data, size):
    with reading(data) as fd:
        try:
            list(pages.values(fd, size, "shard 00007"))
        except DamagedShardError:
            return
    pytest.fail("512-byte pages of nothing in particular are not a shard")


def make_meta(number: int, size: int, transaction: int, last_page: int, root: int = NO_PAGE, **fields: int) -> bytes:
    kind, magic, version = fields.get("kind", META), fields.get("magic", 0xBEEFC0DE), fields.get("version", 1)
    names = ("flags", "depth", "branches", "leaves", "overflow", "entries")
    head = struct.pack("<QHHHHIIQQ", number, 0, kind, 0, 0, magic, version, 0, 2**40)
    free = struct.pack("<IHHQQQQQ", fields.get("page_bytes", size), 0x4008, 0, 0, 0, 0, 0, NO_PAGE)
    main = struct.pack("<IHHQQQQQ", 0, *(fields.get(name, 0) for name in names), root)
    return (head + free + main + struct.pack("<QQ", last_page, transaction)).ljust(size, b"\0")


def make_page(number: int, size: int, nodes: list[bytes], kind: int = LEAF, lower: int = 0, upper: int = 0) -> bytes:
    body, offsets, at = b"", [], size
    for node in nodes:
        at -= len(node)
        body = node + body
        offsets.append(at)
    lower = lower or 16 + 2 * len(nodes)
    head = struct.pack("<QHHHH", number, 0, kind, lower, upper or at) + struct.pack(f"<{len(nodes)}H", *offsets)
    return head + bytes(max(0, at - len(head))) + body


def make_leaf(key: int, value: bytes, **fields: int) -> bytes:
    size, where = fields.get("size", len(value)), fields.get("where", 0)
    node = struct.pack("<IHH", size, where, fields.get("key_bytes", 8)) + key.to_bytes(8, "big") + value
    return node + bytes(len(node) % 2)


def make_branch(child: int, key: bytes) -> bytes:
    return struct.pack("<IHH", child & 0xFFFFFFFF, child >> 32, len(key)) + key


def make_shard(tree: list[bytes], size: int = 512, root: int = 2, **fields: int) -> bytes:
    last = fields.pop("last_page", 1 + len(tree))
    counts = {"depth": 1, "leaves": 1, "entries": 1} | fields
    return b"".join([make_meta(0, size, 6, last, root, **counts), make_meta(1, size, 5, 1), *tree])


@pytest.mark.parametrize("size", [512, 1024, 4096, 16384, 32768])
def test_pages_of_any_size_that_lmdb_has_are_walked(size):
    data = make_shard([make_page(2, size, [make_leaf(4, b"a"), make_leaf(5, b"bcd")])], size, entries=2)
    assert [(key[7], data[at : at + length]) for key, at, length in values(data)] == [(4, b"a"), (5, b"bcd")]


ONE = [make_leaf(4, b"a")]


def one_leaf(*nodes: bytes, kind: int = LEAF, lower: int = 0, upper: int = 0, number: int = 2, **fields: int) -> bytes:
    return make_shard([make_page(number, 512, list(nodes), kind, lower, upper)], **fields)


def large_value(run: int, size: int) -> bytes:
    return one_leaf(make_leaf(4, struct.pack("<Q", run), where=1, size=size), overflow=1)


def two_levels(children: list[tuple[int, bytes]], below: list[list[bytes]], **fields: int) -> bytes:
    root = make_page(2, 512, [make_branch(child, key) for child, key in children], BRANCH)
    tree = [root, *(make_page(3 + i, 512, nodes) for i, nodes in enumerate(below))]
    return make_shard(tree, **({"depth": 2, "branches": 1, "leaves": len(below), "entries": len(below)} | fields))


FORGERIES = [
    ("page 0 says pages of 3000 bytes", one_leaf(*ONE, page_bytes=3000)),
    ("page 0 says pages of 0 bytes", one_leaf(*ONE, page_bytes=0)),
    ("page 0 says pages of 65536 bytes", one_leaf(*ONE, page_bytes=65536)),
    ("page 0 says pages of 4294967295 bytes", one_leaf(*ONE, page_bytes=2**32 - 1)),
    ("page 0 is not a meta page of LMDB's data format 1", one_leaf(*ONE, version=3)),
    ("page 0 is not a meta page of LMDB's data format 1", one_leaf(*ONE, magic=0xDEADBEEF)),
    ("page 0 says a database with flags 0x0004", one_leaf(*ONE, flags=4)),
    ("must have 9 pages of 512 bytes, has 1536 bytes", one_leaf(*ONE, last_page=8)),
    ("must have 18446744073709551616 pages", one_leaf(*ONE, last_page=2**64 - 1)),
    ("a tree of depth 33 ", one_leaf(*ONE, depth=33)),
    ("a tree of depth 0 ", one_leaf(*ONE, depth=0)),
    ("its root at page 1 of 3", one_leaf(*ONE, root=1)),
    ("its root at page 3 of 3", one_leaf(*ONE, root=3)),
    ("must be (0, 1, 0, 2), are (0, 1, 0, 1)", one_leaf(*ONE, entries=2)),
    ("must be (0, 1, 3, 1), are (0, 1, 0, 1)", one_leaf(*ONE, overflow=3)),
    ("must be (1, 1, 0, 1), are (0, 0, 0, 0)", make_shard([], root=NO_PAGE, branches=1)),
    ("more than the 0 pages of this kind that it must have", one_leaf(*ONE, leaves=0)),
    ("page 2 has the number of another page", one_leaf(*ONE, number=3)),
    ("page 2 is not of kind 2", one_leaf(*ONE, kind=0x22)),
    ("page 2 has bounds that cannot be", one_leaf()),
    ("page 2 has bounds that cannot be", one_leaf(*ONE, lower=4)),
    ("page 2 has bounds that cannot be", one_leaf(*ONE, lower=19)),
    ("page 2 has bounds that cannot be", one_leaf(*ONE, upper=16)),
    ("page 2 has bounds that cannot be", one_leaf(*ONE, upper=514)),
    ("page 2 has a node outside of its bounds", one_leaf(*ONE, upper=500)),
    ("page 2 has a node outside of its bounds", one_leaf(b"\0" * 6)),
    ("page 2 has a node outside of its bounds", one_leaf(make_leaf(4, b"aa")[:-1])),
    ("page 2 has a key that is not of 8 bytes", one_leaf(make_leaf(4, b"a", key_bytes=7))),
    ("page 2 has a key that is not of 8 bytes", one_leaf(make_leaf(4, b"a", key_bytes=65535))),
    ("page 2 has a node that is not a value", one_leaf(make_leaf(4, b"a" * 48, where=2))),
    ("page 2 has a value that leaves the page", one_leaf(make_leaf(4, b"a", size=9999))),
    ("page 2 has a value that leaves the page", one_leaf(make_leaf(4, b"", where=1))),
    ("page 2 has keys that do not ascend", one_leaf(*ONE, *ONE, entries=2)),
    ("page 2 has a value that leaves the file", large_value(run=1, size=9)),
    ("page 2 has a value that leaves the file", large_value(run=3, size=9)),
    ("page 2 has a value that leaves the file", large_value(run=2**63, size=9)),
    ("page 2 has a value that leaves the file", large_value(run=2**64 - 1, size=9)),
    ("page 2 has a value that leaves the file", large_value(run=2, size=497)),
    ("page 2 has a value that leaves the file", large_value(run=2, size=2**32 - 1)),
    ("page 2 has a child outside of the file", two_levels([(3, b""), (9, b"\0" * 8)], [ONE, ONE])),
    ("page 2 has a child outside of the file", two_levels([(3, b""), (2**48 - 1, b"\0" * 8)], [ONE, ONE])),
    ("page 2 has a child outside of the file", two_levels([(1, b""), (3, b"\0" * 8)], [ONE, ONE])),
    ("page 2 has a key that is not of 8 bytes", two_levels([(3, b""), (4, b"")], [ONE, ONE])),
    ("page 2 has a key that is not of 8 bytes", two_levels([(3, b"long" * 3), (4, b"\0" * 8)], [ONE, ONE])),
    ("page 2 has bounds that cannot be", two_levels([(3, b"")], [ONE])),
    ("page 4 has keys that do not ascend", two_levels([(3, b""), (4, b"\0" * 8)], [ONE, ONE])),
    ("page 3 has keys that do not ascend", two_levels([(3, b""), (3, b"\0" * 8)], [ONE], leaves=2)),
    ("more than the 1 pages of this kind that it must have", two_levels([(3, b""), (3, b"\0" * 8)], [ONE])),
    ("page 2 is not of kind 2", two_levels([(2, b""), (2, b"\0" * 8)], [ONE], leaves=9)),
    ("more than the 7 pages of", two_levels([(2, b""), (2, b"\0" * 8)], [ONE], depth=32, branches=7)),
    ("page 3 is not of kind 1", two_levels([(3, b""), (4, b"\0" * 8)], [ONE, ONE], depth=3, branches=9)),
]


@pytest.mark.parametrize(("what", "data"), FORGERIES, ids=[f"{i}: {what}" for i, (what, _) in enumerate(FORGERIES)])
def test_a_forged_page_is_refused_by_its_fault(what, data):
    with pytest.raises(DamagedShardError) as caught:
        structure(data)
    assert str(caught.value).startswith("shard 00007: ")
    assert what in str(caught.value)
    assert str(caught.value).endswith("(the file is damaged; run 'shardcache verify')")


def test_meta_pages_of_two_minds_are_refused():
    data = b"".join([make_meta(0, 512, 6, 1), make_meta(1, 512, 5, 1, page_bytes=1024)])
    with pytest.raises(DamagedShardError, match="pages of 512 and of 1024 bytes"):
        structure(data)


@pytest.mark.parametrize(("first", "second", "counts"), [(6, 5, 0), (5, 6, 1), (6, 6, 0)])
def test_the_meta_page_of_the_higher_transaction_counts(first, second, counts):
    good = {"depth": 1, "leaves": 1, "entries": 1}
    metas = [make_meta(0, 512, first, 2, 2, **good), make_meta(1, 512, second, 2, 2, **good)]
    metas[1 - counts] = make_meta(1 - counts, 512, (second, first)[counts], 77)
    assert len(values(b"".join([*metas, make_page(2, 512, ONE)]))) == 1


def test_a_file_that_is_shorter_than_it_was_said_to_be_is_damaged(shard):
    with reading(shard[: len(shard) // 2]) as fd, pytest.raises(DamagedShardError, match="ends after"):
        pages.structure(fd, len(shard), "shard 00007")
    with reading(b"") as fd, pytest.raises(DamagedShardError, match="ends after 0 bytes, must have 8192"):
        pages.structure(fd, 8192, "shard 00007")
    with pytest.raises(DamagedShardError, match="too few"):
        structure(b"")


def test_what_cannot_be_read_is_damaged_and_says_why(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(DamagedShardError, match="shard 00007: cannot be read at byte 0: Is a directory"):
            pages.structure(fd, 8192, "shard 00007")
        with pytest.raises(DamagedShardError, match="shard 00007: cannot be read at byte 5: Is a directory"):
            pages.preadv(fd, [memoryview(bytearray(1))], 5, "shard 00007")
    finally:
        os.close(fd)


def test_memory_is_filled_in_order_however_little_the_system_reads_at_once(monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, outs, offset: real(fd, [outs[0][:7]], offset))
    data = random.Random(0).randbytes(100)
    with reading(data) as fd:
        outs = [bytearray(size) for size in (16, 0, 30, 7)]
        pages.preadv(fd, [memoryview(out) for out in outs], 20, "shard 00007")
        assert b"".join(outs) == data[20:73]
        with pytest.raises(DamagedShardError, match="shard 00007: ends after 100 bytes, must have 101 or more"):
            pages.preadv(fd, [memoryview(bytearray(41))], 60, "shard 00007")


def test_a_walk_over_a_shard_of_small_values_takes_little_memory(tmp_path):
    write_shard(tmp_path / "shard", [b"x" * 1900] * 16_000)
    fd = os.open(tmp_path / "shard", os.O_RDONLY)
    try:
        tracemalloc.start()
        pages.structure(fd, os.fstat(fd).st_size, "shard 00007")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # the file has 32 MiB, nearly all of it leaf pages
    finally:
        tracemalloc.stop()
        os.close(fd)
