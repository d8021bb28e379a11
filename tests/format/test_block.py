"""A stored value is accepted at its place, whole, and nowhere else."""

import random
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import shardcache
from shardcache.errors import DamagedBlockError, DamagedError, DamagedShardError
from shardcache.format import block, compression, leases, pages, spec
from shardcache.format.block import PREFIX_BYTES, Place, open_body, open_into, seal, value_key
from shardcache.format.shard import ShardWriter
from shardcache.read.blocks import Blocks
from tests.format.leasing import lease

ID = bytes(range(16))
PLACE = Place(ID, 12, value_key(7, 3), "image")
levels = st.sampled_from([None, -5, 1, "lzma"])


def opened(value: bytes | bytearray, place: Place = PLACE) -> bytes:
    return open_body(memoryview(value), place).tobytes()


@given(st.binary(max_size=2000), levels)
def test_a_body_comes_back(body, level):
    value = seal(body, level, PLACE)
    assert opened(value) == body
    out = bytearray(len(body))
    open_into(memoryview(value), memoryview(out), PLACE)
    assert out == body


@pytest.mark.parametrize("size", [16 << 10, (16 << 10) + 1, 256 << 10, (600 << 10) + 5])
def test_a_long_body_that_is_not_compressed_is_copied_whole_and_its_copy_checked(size):
    body = np.random.default_rng(0).bytes(size)
    value, out = seal(body, None, PLACE), bytearray(size)
    assert opened(value) == body
    open_into(memoryview(value), memoryview(out), PLACE)
    assert out == body
    for at in (8, 16, len(value) // 2, len(value) - 1):
        value[at] ^= 4
        with pytest.raises(DamagedBlockError, match=r"^shard 00012, block 7, column 'image': "):
            opened(value)
        with pytest.raises(DamagedBlockError, match=r"^shard 00012, block 7, column 'image': "):
            open_into(memoryview(value), memoryview(out), PLACE)
        value[at] ^= 4


@pytest.mark.parametrize("size", [0, 5, 256 << 10, (600 << 10) + 5])
def test_a_body_that_is_not_compressed_is_read_from_its_file_to_where_it_belongs_and_checked_there(tmp_path, size):
    body = np.random.default_rng(0).bytes(size)
    value, out = bytes(seal(body, None, PLACE)), bytearray(size)
    with ShardWriter(tmp_path / "shard") as writer:
        writer.put(PLACE.key, value)
        written = writer.finish()
    start = (tmp_path / "shard").read_bytes().index(value)
    with lease(tmp_path / "shard", written, "shard 00012", "pread") as reader:
        open_into(reader.find(PLACE.key), memoryview(out), PLACE)
        assert out == body
        with pytest.raises(DamagedBlockError, match=f"a body of {size} bytes where the block needs {size + 1}"):
            open_into(reader.find(PLACE.key), memoryview(bytearray(size + 1)), PLACE)
        with (tmp_path / "shard").open("r+b", buffering=0) as file:
            for at in {0, 8, 14, len(value) - 1}:
                for byte in (value[at] ^ 4, value[at]):
                    file.seek(start + at)
                    file.write(bytes([byte]))
                    if byte != value[at]:
                        with pytest.raises(DamagedBlockError, match=r"^shard 00012, block 7, column 'image': "):
                            open_into(reader.find(PLACE.key), memoryview(out), PLACE)


def test_a_value_is_laid_out_as_the_specification_says():
    body = b"abc" * 100
    seed = xxhash.xxh3_64_intdigest(ID + (12).to_bytes(4, "little") + bytes([0, 0, 0, 7, 0, 3, 0, 0]))
    for level, codec in ((None, 0), (3, 1), ("lzma", 2)):
        value = bytes(seal(body, level, PLACE))
        assert value[8:14] == (300).to_bytes(6, "little")
        assert value[14:16] == bytes([codec, 0])
        assert int.from_bytes(value[:8], "little") == xxhash.xxh3_64_intdigest(value[8:], seed=seed)
    assert bytes(seal(body, None, PLACE))[16:] == body


def test_a_key_is_ordered_by_block_then_column_then_row():
    places = [(0, 0, None), (0, 0, 0), (0, 0, 1023), (0, 1, None), (1, 0, None), (2**32 - 1, 0, None)]
    keys = [value_key(*place) for place in places]
    assert keys == sorted(keys)
    assert value_key(1, 2, 3) == bytes([0, 0, 0, 1, 0, 2, 0, 4])
    assert max(keys) < spec.INDEX_KEY


@pytest.mark.parametrize(
    "other",
    [
        Place(bytes(16), 12, value_key(7, 3)),
        Place(ID, 13, value_key(7, 3)),
        Place(ID, 12, value_key(8, 3)),
        Place(ID, 12, value_key(7, 4)),
        Place(ID, 12, value_key(7, 3, 0)),
        Place(ID, 12, spec.INDEX_KEY),
    ],
)
@pytest.mark.parametrize("level", [None, 1, "lzma"])
def test_a_sound_value_is_refused_at_any_other_place(other, level):
    with pytest.raises(DamagedBlockError, match="stored checksum 0x"):
        opened(seal(b"some body", level, PLACE), other)


@pytest.mark.parametrize("level", [None, 1, "lzma"])
def test_every_flipped_bit_is_refused(level):
    value = seal(b"a body that repeats " * 6, level, PLACE)
    for place in range(8 * len(value)):
        changed = bytearray(value)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedBlockError, match=r"^shard 00012, block 7, column 'image': stored checksum"):
            opened(changed)


@pytest.mark.parametrize("level", [None, 1, "lzma"])
def test_a_value_that_was_cut_or_extended_is_refused(level):
    value = bytes(seal(b"a body that repeats " * 6, level, PLACE))
    for changed in [value[:length] for length in range(len(value))] + [value + b"\0", value + value]:
        with pytest.raises(DamagedBlockError):
            opened(changed)


def resealed(length: int, codec: int, zero: int, stored: bytes) -> bytes:
    """A value that nobody wrote, with a checksum that fits."""
    rest = length.to_bytes(6, "little") + bytes([codec, zero]) + stored
    return xxhash.xxh3_64_intdigest(rest, seed=PLACE.seed()).to_bytes(8, "little") + rest


FRAME = compression.compress(bytes(1000), 3)
STREAM = compression.compress(bytes(1000), "lzma")


@pytest.mark.parametrize(
    "value",
    [
        resealed(3, 3, 0, b"abc"),
        resealed(3, 2, 0, b"abc"),
        resealed(1000, 2, 0, FRAME),
        resealed(1000, 1, 0, STREAM),
        resealed(999, 2, 0, STREAM),
        resealed(1001, 2, 0, STREAM),
        resealed(1000, 2, 0, STREAM[:-2]),
        resealed(1000, 2, 1, STREAM),
        resealed(3, 0, 1, b"abc"),
        resealed(4, 0, 0, b"abc"),
        resealed(2, 0, 0, b"abc"),
        resealed(999, 1, 0, FRAME),
        resealed(1001, 1, 0, FRAME),
        resealed(1000, 1, 0, FRAME[:-2]),
        resealed(1000, 1, 0, b"not a frame"),
        resealed((1 << 40) + 1, 1, 0, FRAME),
        resealed(1 << 40, 1, 0, FRAME),  # nobody allocates a tebibyte for that
        resealed(0, 1, 0, b""),
    ],
)
def test_a_prefix_that_lies_is_refused_before_memory_is_taken(value):
    with pytest.raises(DamagedBlockError, match=r"^shard 00012, block 7, column 'image': "):
        opened(value)


def test_memory_of_another_size_is_not_written_to():
    for size in (8, 10):
        with pytest.raises(DamagedBlockError, match="a body of 9 bytes where the block needs"):
            open_into(memoryview(seal(b"some body", 1, PLACE)), memoryview(bytearray(size)), PLACE)


def test_a_place_says_where_it_is():
    assert str(Place(ID, 1, value_key(2, 3, 4), "a/b")) == "shard 00001, block 2, row 4, column 'a/b'"
    assert str(Place(ID, 1, spec.INDEX_KEY)) == "shard 00001, its index"


class TestInACache:
    """The same, through the door that readers use, with shards whose pages are sound."""

    @pytest.fixture
    def path(self, tmp_path, monkeypatch) -> Path:
        monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 2000)
        monkeypatch.setattr(spec, "MIN_SHARDS", 2)
        monkeypatch.setattr(spec, "LARGE_ROW_BYTES", 300)
        samples = [(index, f"text {index}", bytes([index]) * (400 if index % 9 == 0 else 5)) for index in range(120)]
        shardcache.build(samples, tmp_path / "c", block_bytes=1500, codec="none", layout="source", progress=False)
        return tmp_path / "c"

    def rewrite(self, path: Path, number: int, values: dict[bytes, bytes]) -> Blocks:
        """Write a shard anew, and the manifest's seal of it, so that only the values' own checksums can object."""
        import msgspec

        from shardcache.format import manifest

        file = path / spec.shard_name(number)
        file.unlink()
        with ShardWriter(file) as writer:
            for key in sorted(values):
                writer.put(key, values[key])
            sealed = writer.finish()
        whole = manifest.read(path)
        seals = [*whole.shards]
        seals[number] = sealed
        return Blocks(path, msgspec.structs.replace(whole, shards=tuple(seals)))

    def values(self, path: Path, number: int) -> dict[bytes, bytes]:
        file = (path / spec.shard_name(number)).open("rb")
        with file:
            size = (path / spec.shard_name(number)).stat().st_size
            found = list(pages.values(file.fileno(), size, "shard"))
            return {key: _read(file, start, count) for key, start, count in found}

    def read_all(self, blocks: Blocks) -> None:
        m = blocks.manifest
        for number in range(m.blocks):
            for rows in blocks.read(number, range(len(m.columns))).values():
                for row in range(rows.count):
                    rows.value(row)

    def test_a_shard_that_is_written_anew_with_its_own_values_is_sound(self, path):
        self.read_all(self.rewrite(path, 0, self.values(path, 0)))

    def test_values_that_changed_places_are_refused(self, path):
        values, others = self.values(path, 0), self.values(path, 1)
        keys = sorted(values)
        assert any(key[6:] != b"\0\0" and key != spec.INDEX_KEY for key in keys)  # large rows among them
        refused = 0
        for one in keys:
            two = keys[(keys.index(one) + 1) % len(keys)]
            for changed in ({one: values[two], two: values[one]}, {one: others.get(one, values[two])}):
                if changed[one] == values[one]:
                    continue
                blocks = self.rewrite(path, 0, {**values, **changed})
                with pytest.raises(DamagedBlockError):
                    self.read_all(blocks)
                refused += 1
                leases.close_all()
        assert refused > 2 * len(keys) - 3

    def test_a_value_of_another_cache_is_refused(self, path, tmp_path):
        samples = [(index + 1, f"text {index}", bytes(5)) for index in range(120)]
        shardcache.build(samples, tmp_path / "d", block_bytes=1500, codec="none", layout="source", progress=False)
        values, others = self.values(path, 0), self.values(tmp_path / "d", 0)
        key = value_key(0, 2)
        with pytest.raises(DamagedBlockError, match="shard 00000, block 0, column"):
            self.read_all(self.rewrite(path, 0, {**values, key: others[key]}))

    def test_a_value_that_is_missing_is_told(self, path):
        values = self.values(path, 0)
        for key in values:
            blocks = self.rewrite(path, 0, {other: value for other, value in values.items() if other != key})
            with pytest.raises(DamagedError, match="shard 00000"):
                self.read_all(blocks)
            leases.close_all()

    def test_an_index_that_lies_is_refused(self, path):
        values, cache_id = self.values(path, 0), bytes.fromhex(shardcache.open(path).manifest.cache_id)
        place = Place(cache_id, 0, spec.INDEX_KEY)
        index = opened(values[spec.INDEX_KEY], place)
        for body in (index[:-1], index + b"\1", b"", bytes([4]) * len(index), bytes([0x20]) * len(index)):
            blocks = self.rewrite(path, 0, {**values, spec.INDEX_KEY: bytes(seal(body, None, place))})
            with pytest.raises(DamagedBlockError, match="shard 00000, its index"):
                self.read_all(blocks)
            leases.close_all()

    def test_swapped_shards_are_refused(self, path):
        one, two = (path / spec.shard_name(number) for number in (0, 1))
        first = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(first)
        with pytest.raises(DamagedShardError):
            self.read_all(shardcache.open(path).blocks)

    def test_every_flipped_byte_of_a_shard_is_noticed_or_was_never_looked_at(self, path):
        want = list(shardcache.open(path))
        leases.close_all()
        file = path / spec.shard_name(0)
        data, draw, noticed = file.read_bytes(), random.Random(4), 0
        for _ in range(250):
            changed = bytearray(data)
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            try:
                assert list(shardcache.open(path)) == want
            except DamagedError:
                noticed += 1
            leases.close_all()
        assert noticed > 150

    def test_a_lease_gives_the_values_that_the_pages_say(self, path):
        cache = shardcache.open(path)
        with lease(path / spec.shard_name(0), cache.manifest.shards[0], "shard 00000") as reader:
            assert {key: bytes(reader.get(key)) for key in self.values(path, 0)} == self.values(path, 0)


def _read(file: object, start: int, count: int) -> bytes:
    import os

    return os.pread(file.fileno(), count, start)  # type: ignore[attr-defined]


def test_the_prefix_is_sixteen_bytes():
    assert PREFIX_BYTES == block.PREFIX_BYTES == 16


def test_a_body_that_is_larger_than_there_can_be_is_refused_before_there_is_memory_for_it():
    place = Place(bytes(16), 3, value_key(1, 2), "text")
    value = memoryview(seal(bytes(1 << 20), 3, place))
    with pytest.raises(DamagedBlockError, match="column 'text': a body of 1048576 bytes where there can be 1048575 at"):
        block.open_body(value, place, (1 << 20) - 1)
    assert len(block.open_body(value, place, 1 << 20)) == 1 << 20
