"""Values that somebody made to do harm, and trees of pages: every checksum and every seal fits them."""

import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import xxhash
import zstandard

from shardcache import DamagedError
from shardcache.format import block, compression, manifest, pages, spec
from shardcache.format.block import PREFIX_BYTES, Place
from tests.faults.children import attempt, in_children
from tests.faults.exchanged import Value, put, values_of
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.flips import DAMAGES, write
from tests.faults.victims import epoch, readable, rows, victim

FAULT = "hostile blocks and pages, all checksums made to fit"
REQUIRED = "refused before allocation"
SHORT, LONG = 300, 100_000

MEMORY_BYTES = 64 << 20
BOMB_BYTES = 1 << 30

NUMBERS = [0, 1, 2, 7, 2**15, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8]


def sealed(stored: bytes, length: int, place: Place, codec: int = compression.ZSTD, zero: int = 0) -> bytes:
    """A stored value with any prefix, and the checksum that it should have."""
    rest = (length % 2**48).to_bytes(6, "little") + bytes([codec, zero]) + stored
    return xxhash.xxh3_64_intdigest(rest, seed=place.seed()).to_bytes(8, "little") + rest


def frame(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**{"level": 3, "write_content_size": True, **options}).compress(data)


@cache
def _stream_bomb() -> bytes:
    return compression.compress(bytes(BOMB_BYTES >> 5), "lzma")


def streams(body: bytes) -> Iterator[tuple[bytes, int]]:
    """The same of LZMA2 streams."""
    good, size = compression.compress(body, "lzma"), len(body)
    yield _stream_bomb(), size
    yield _stream_bomb(), BOMB_BYTES
    yield from ((good, length) for length in (0, size - 1, size + 1, 2 * size, 2**30, 2**40, 2**48 - 1))
    yield from ((good + junk, size) for junk in (b"\0", b"junk", good))
    yield from ((good[:cut], size) for cut in (0, 1, 2, len(good) // 2, len(good) - 1))
    yield from ((bytes([distance]) + good[1:], size) for distance in (compression.MAX_DISTANCE + 1, 0xFF))
    yield good[:1] + b"\xe0" + b"\xff" * 8, size


def frames(body: bytes) -> Iterator[tuple[bytes, int]]:
    """(stored bytes, length that the prefix says) where something is wrong with the frame or the length."""
    good, size = frame(body), len(body)
    bomb = frame(bytes(BOMB_BYTES))
    yield bomb, BOMB_BYTES
    yield bomb, size
    yield frame(bytes(8 << 20)), size
    yield from ((good, length) for length in (0, size - 1, size + 1, 2 * size, 2**30, 2**40, 2**48 - 1))
    yield from ((good + junk, size) for junk in (b"\0", b"junk", good, bomb, struct.pack("<II", 0x184D2A50, 0)))
    yield struct.pack("<II", 0x184D2A50, 4) + b"skip" + good, size
    yield from ((good[:cut], size) for cut in (0, 1, 4, len(good) // 2, len(good) - 1))
    yield frame(body, write_content_size=False), size
    yield frame(body, write_checksum=True)[:-1] + b"x", size
    dictionary = zstandard.ZstdCompressionDict(body or b"dictionary", dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    yield frame(body, dict_data=dictionary), size
    trained = zstandard.train_dictionary(4096, [random.Random(k).randbytes(200) * 3 for k in range(200)])
    yield frame(body, dict_data=trained), size
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    yield zstandard.ZstdCompressor(compression_params=wide).compressobj().compress(b"x") + good, size
    # a header that asks for a window of 2^41 bytes, and one that says 2^63 bytes of content
    yield b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00", size
    yield b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**63) + b"\x01\x00\x00", size


PACKED = [b"\xc0", b"\x91" * 5000 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xc0\xc0", b"\xc1"]
PACKED += [b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xffx", b"\xc9\xff\xff\xff\xff\x01x", b"\xd9\x02\xff\xfe", b""]


def nested_values() -> Iterator[bytes]:
    """MessagePack that promises what it does not hold, or asks for what nobody may have."""
    pack, ext = msgspec.msgpack.encode, msgspec.msgpack.Ext
    yield from PACKED
    for code in range(-3, 12):
        yield from (pack(ext(code, data)) for data in (b"", b"\xc0", b"\x90", b"\x91" * 200, b"\xdd\xff\xff\xff\xff"))
    deep = pack(None)
    for _ in range(3000):
        deep = pack(ext(1, b"\x91" + deep))
    yield deep
    shapes = [[2**62], [2**32, 2**32], [-1], [0] * 100, [0, 2**62], [1.5], ["x"], [2**64 - 1], []]
    for kind, dtype, shape in itertools.product(
        ("array", "tensor", "scalar", "x"), ("|O", "<i8", "bool", "<U1"), shapes
    ):
        yield pack(ext(3, pack([kind, dtype, shape, b"12345678"])))
    for size in ((100_000, 100_000), (-1, -1), (2**31, 2), (2**63 - 1, 2**63 - 1), (0, 2**40)):
        yield from (pack(ext(4, pack([mode, *size, b"xyz", None, None]))) for mode in ("RGB", "1", "P", "\0", "x" * 99))
    for name in ("os.system", "__class__", "", "A", "a b", "x" * 100_000):
        yield pack(ext(6, pack([name, ["__init__", "a", "a"], True, [1, 2, 3]])))
        yield pack(ext(6, pack([name, ["a"] * 3000, False, [None] * 3000])))
    for scheme in ("per_tensor_affine", "per_channel_affine", "x"):
        yield pack(ext(8, pack(["quint8", [2**40], b"x", scheme, [0.1] * 9, [2**62], 7])))


def bodies(body: bytes, is_nested: bool) -> Iterator[bytes]:
    """Bodies in which a size lies, as a u64 at each of the places where sizes are."""
    for at, number in itertools.product(range(0, min(len(body) - 7, 48), 8), NUMBERS):
        yield body[:at] + struct.pack("<Q", number) + body[at + 8 :]
    for size in (0, 1, 7, 8, len(body) - 1, len(body) + 1, len(body) + 4096):
        yield (body + bytes(4096))[:size]
    yield from (bytes([byte]) * len(body) for byte in (1, 2, 3, 0x7F, 0x80, 0xFF))
    if is_nested:
        for packed in nested_values():
            yield struct.pack("<Q", len(packed)) + packed


class Hostile:
    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        self.content = manifest.read(path)
        self.files = {file: file.read_bytes() for file in path.iterdir()}
        self.values = values_of(path)
        self.ways: tuple[Callable[[Path], Any], ...] = (rows, epoch)

    def place(self, value: Value) -> Place:
        return Place(bytes.fromhex(self.content.cache_id), value.shard, value.key)

    def body(self, value: Value) -> bytes:
        return block.open_body(memoryview(value.data), self.place(value)).tobytes()

    def crafted(self) -> Iterator[tuple[Value, bytes]]:
        """The catalogue: for one value of each column, of a large row and of the index."""
        seen = set()
        for value in self.values:
            kind = value.key[4:6], value.key[6:] == b"\0\0"
            if kind in seen:
                continue
            seen.add(kind)
            body, place = self.body(value), self.place(value)
            position = int.from_bytes(value.key[4:6], "big")
            is_nested = position < len(self.content.columns) and self.content.columns[position].type == "nested"
            yield from ((value, sealed(stored, length, place)) for stored, length in frames(body))
            yield from ((value, sealed(stored, length, place, compression.LZMA)) for stored, length in streams(body))
            yield from ((value, sealed(body, len(body), place, codec)) for codec in (2, 3, 0x7F, 0xFF))
            yield value, sealed(body, len(body), place, compression.NONE, zero=1)
            yield from (
                (value, sealed(other, len(other), place, compression.NONE)) for other in bodies(body, is_nested)
            )
            yield from (
                (value, data) for data in (b"", b"x", value.data[: PREFIX_BYTES - 1], value.data[:PREFIX_BYTES])
            )

    def fuzzed(self, number: int) -> Outcome:
        """Read by index and in batches in turns."""
        draw, self.ways = random.Random(f"{self.seed} {number}"), ((rows, epoch)[number % 2],)
        if draw.random() < 0.25:
            return self.with_pages(draw)
        value = draw.choice(self.values)
        place, length = self.place(value), len(self.body(value))
        data = bytearray(value.data[PREFIX_BYTES:] if draw.random() < 0.3 else self.body(value))
        codec = value.data[14] if len(data) != length else compression.NONE
        for _ in range(draw.choice([1, 1, 2])):
            if len(data) >= 8 and draw.random() < 0.4:
                at = draw.randrange(len(data) // 8) * 8
                data[at : at + 8] = struct.pack("<Q", draw.choice([*NUMBERS, draw.randrange(2**16)]))
            elif data:
                draw.choice(DAMAGES)(draw, data, draw.choice(self.values).data)
        if codec == compression.NONE and draw.random() < 0.5:
            return self.with_value(value, sealed(frame(bytes(data)), len(data), place))
        return self.with_value(value, sealed(bytes(data), len(data) if codec == 0 else length, place, codec))

    def with_value(self, value: Value, data: bytes) -> Outcome:
        values = [other._replace(data=data) if other is value else other for other in self.values]
        put(self.path, [other for other in values if other.shard == value.shard])
        return self.read(f"{self.place(value)}")

    def with_pages(self, draw: random.Random) -> Outcome:
        """Pages of the tree that lie; where the walk finds nothing wrong with them, a seal that fits."""
        number = draw.randrange(len(self.content.shards))
        path = self.path / spec.shard_name(number)
        data = bytearray(self.files[path])
        for _ in range(draw.choice([1, 1, 2, 4])):
            tree = [at for at in range(0, len(data), 4096) if data[at + 10 : at + 12] in (b"\1\0", b"\2\0", b"\x08\0")]
            at = draw.choice(tree) + draw.choice([draw.randrange(4096) & ~1, draw.randrange(0, 160, 2)])
            size = draw.choice([2, 2, 4, 8])
            number_ = draw.choice([*NUMBERS, draw.randrange(64), draw.randrange(2**16)])
            data[at : at + size] = struct.pack("<Q", number_)[:size]
        write(path, data)
        with path.open("rb") as file:
            try:
                seal = pages.seal(file.fileno(), path.name)
            except DamagedError as error:
                return Outcome("refused", str(error))
        seals = list(self.content.shards)
        seals[number] = seal
        whole = msgspec.structs.replace(self.content, shards=tuple(seals), digest="")
        (self.path / spec.MANIFEST_NAME).write_bytes(manifest.encode(whole))
        return self.read(f"shard {number}, its pages")

    def read(self, what: str) -> Outcome:
        outcomes = [attempt(lambda read=read: read(self.path)) for read in self.ways]
        worst = max(outcomes, key=lambda outcome: ["served", "refused"].count(outcome.kind) == 0)
        return Outcome(worst.kind, f"{what}: {worst.what}")

    def restored(self, trial: Callable[[], Outcome]) -> Outcome:
        try:
            return trial()
        finally:
            for file, data in self.files.items():
                file.write_bytes(data)
                os.utime(file)


def run(asked: Asked) -> Figures:
    """The catalogue, before trial 0, and fuzzed values and trees; a short run tries every tenth of the catalogue."""
    with victim() as path:
        hostile = Hostile(path, asked.seed)
        crafted = [] if asked.first else list(hostile.crafted())[:: 1 if asked.trials > SHORT else 10]
        limits = {"memory_bytes": MEMORY_BYTES, "prepare": lambda: readable(path)}
        figures = in_children(
            lambda number: hostile.restored(lambda: hostile.with_value(*crafted[number])), range(len(crafted)), **limits
        )
        hostile.restored(lambda: Outcome("right"))
        figures += in_children(lambda number: hostile.restored(lambda: hostile.fuzzed(number)), asked.numbers, **limits)
        return figures
