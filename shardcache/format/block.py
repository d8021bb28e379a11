"""A stored value: a body, perhaps compressed, behind a prefix that binds it to its place (``spec``, section 5)."""

import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash

from shardcache.errors import BuildError, DamagedBlockError
from shardcache.format import compression, spec

_PREFIX = struct.Struct("<QQ")
_CODEC_BIT = 48
_KEY = struct.Struct(">IHH")
_SHARD = struct.Struct("<I")
PREFIX_BYTES = _PREFIX.size
_PIECE_BYTES = 256 << 10  # copied and hashed while they are in the processor's cache
_SMALL_BYTES = 16 << 10  # are copied before another thread could have begun to run

Body = np.ndarray[Any, np.dtype[np.uint8]]


def value_key(block: int, column: int, row: int | None = None) -> bytes:
    """The key of a column's value of a block (numbered in its shard), or of one large row of it."""
    return _KEY.pack(block, column, 0 if row is None else row + 1)


@dataclass(slots=True)
class Place:
    """Where a stored value belongs: it is refused anywhere else. ``column`` is only for messages."""

    cache_id: bytes
    shard: int
    key: bytes
    column: str = ""

    def seed(self) -> int:
        """The seed of the value's hash."""
        return xxhash.xxh3_64_intdigest(self.cache_id + _SHARD.pack(self.shard) + self.key)

    def __str__(self) -> str:
        if self.key == spec.INDEX_KEY:
            return f"shard {self.shard:05d}, its index"
        block, column, part = _KEY.unpack(self.key)
        row = f", row {part - 1}" if part else ""
        return f"shard {self.shard:05d}, block {block}{row}, column {self.column or column!r}"


def seal(body: bytes, level: compression.Level | None, place: Place) -> bytearray:
    """A body as a stored value; ``level`` as of :func:`compression.parse_codec`, None to store it as it is."""
    if len(body) > spec.MAX_BODY_BYTES:
        raise BuildError(f"{place}: {len(body)} bytes, the format holds at most {spec.MAX_BODY_BYTES} in one value")
    codec, stored = compression.NONE, body
    if level is not None and body:
        compressed = compression.compress(body, level)
        if len(compressed) < len(body):
            codec, stored = compression.method(level), compressed
    value = bytearray().join((bytes(PREFIX_BYTES), stored))
    _PREFIX.pack_into(value, 0, 0, len(body) | codec << _CODEC_BIT)
    digest = xxhash.xxh3_64_intdigest(memoryview(value)[8:], seed=place.seed())
    value[:8] = digest.to_bytes(8, "little")
    return value


def body_bytes(value: memoryview, place: Place) -> int:
    """Check a stored value and return the length of its body."""
    if len(value) < PREFIX_BYTES:
        raise damaged(place, f"{len(value)} bytes, at least {PREFIX_BYTES} were stored")
    digest, head = _head(value)
    _check(value, digest, place)
    size, codec = head & ((1 << _CODEC_BIT) - 1), head >> _CODEC_BIT
    # Nothing can hold more than MAX_RATIO times its size, so nobody can ask for memory that they did not pay for.
    largest = min(spec.MAX_BODY_BYTES, (len(value) - PREFIX_BYTES) * compression.MAX_RATIO)
    if codec not in (compression.NONE, compression.ZSTD, compression.LZMA) or size > largest:
        raise damaged(place, f"a prefix with codec {codec} and {size} bytes")
    if codec == compression.NONE and size != len(value) - PREFIX_BYTES:
        raise damaged(place, f"{len(value) - PREFIX_BYTES} bytes where {size} were stored")
    return size


def _check(value: memoryview, digest: int, place: Place) -> None:
    found = xxhash.xxh3_64_intdigest(value[8:], place.seed())
    if found != digest:
        raise _differs(place, digest, found)


class Unread(Protocol):
    """A stored value that is still in its file."""

    def __len__(self) -> int: ...

    def fill(self, start: int, *outs: memoryview) -> None:
        """Read what begins at byte ``start`` into ``outs``, one after the other."""

    def whole(self) -> memoryview:
        """All of it."""


def open_into(value: memoryview | Unread, out: memoryview, place: Place) -> None:
    """Check a stored value and put its body into ``out``, which must have the body's length."""
    if not isinstance(value, memoryview):
        if len(value) == PREFIX_BYTES + len(out) and _fill(value, out, place):
            return
        value = value.whole()
    if _is_plain(value) and len(value) == PREFIX_BYTES + len(out):
        _copy(value, out, place)
        return
    size = body_bytes(value, place)
    if size != len(out):
        raise damaged(place, f"a body of {size} bytes where the block needs {len(out)}")
    _decompress(value, out, place)


def open_body(value: memoryview, place: Place, most: int = spec.MAX_BODY_BYTES, *, borrow: bool = False) -> Body:
    """Check a stored value and return its body, in memory of its own; where it is, with ``borrow``, if that can be.

    A body of more than ``most`` bytes is refused before there is memory for it.
    """
    length = len(value) - PREFIX_BYTES
    if 0 <= length <= most and (head := _head(value))[1] == length:
        if borrow:
            _check(value, head[0], place)
            return np.frombuffer(value, np.uint8, offset=PREFIX_BYTES)
        out = np.empty(length, np.uint8)
        _copy(value, out.data, place)
        return out
    size = body_bytes(value, place)
    if size > most:
        raise damaged(place, f"a body of {size} bytes where there can be {most} at most")
    out = np.empty(size, np.uint8)
    _decompress(value, out.data, place)
    return out


def _is_plain(value: memoryview) -> bool:
    """Whether a value says that its body is stored as it is."""
    return len(value) >= PREFIX_BYTES and _head(value)[1] == len(value) - PREFIX_BYTES


def _head(value: memoryview) -> tuple[int, int]:
    """The hash of a value; the length of its body and, from bit 48 on, its codec."""
    digest, head = _PREFIX.unpack_from(value)
    return digest, head


def _copy(value: memoryview, out: memoryview, place: Place) -> None:
    """Copy a plain body, and check the copy: bytes that change meanwhile in the file do not get past the hash."""
    hasher = xxhash.xxh3_64(value[8:PREFIX_BYTES], place.seed())
    stored = value[PREFIX_BYTES:]
    if len(out) <= _SMALL_BYTES:
        out[:] = stored
        hasher.update(out)
    else:
        source, target = np.frombuffer(stored, np.uint8), np.frombuffer(out, np.uint8)
        for start in range(0, len(out), _PIECE_BYTES):
            piece = target[start : start + _PIECE_BYTES]
            np.copyto(piece, source[start : start + _PIECE_BYTES])  # other threads run meanwhile
            hasher.update(piece.data)
    digest, found = _head(value)[0], hasher.intdigest()
    if found != digest:
        raise _differs(place, digest, found)


def _fill(value: Unread, out: memoryview, place: Place) -> bool:
    """Read a plain body to where it belongs, and check it there; False where it does not say that it is one."""
    head = memoryview(bytearray(PREFIX_BYTES))
    value.fill(0, head, out[:_PIECE_BYTES])
    digest, rest = _head(head)
    if rest != len(out):
        return False
    hasher = xxhash.xxh3_64(head[8:], place.seed())
    hasher.update(out[:_PIECE_BYTES])
    for start in range(_PIECE_BYTES, len(out), _PIECE_BYTES):
        piece = out[start : start + _PIECE_BYTES]
        value.fill(PREFIX_BYTES + start, piece)
        hasher.update(piece)
    found = hasher.intdigest()
    if found != digest:
        raise _differs(place, digest, found)
    return True


def _decompress(value: memoryview, out: memoryview, place: Place) -> None:
    try:
        compression.decompress_into(value[PREFIX_BYTES:], out, _head(value)[1] >> _CODEC_BIT)
    except compression.FrameError as error:
        raise damaged(place, str(error)) from None


def _differs(place: Place, digest: int, found: int) -> DamagedBlockError:
    return damaged(place, f"stored checksum 0x{digest:016x} differs from 0x{found:016x}")


def damaged(place: Place, what: str) -> DamagedBlockError:
    """The error for a value that is not what was written at its place."""
    return DamagedBlockError(f"{place}: {what} (the file is damaged; run 'shardcache verify')")
