"""The rows of a cache that hold no sample, as the text that the manifest has of them (``spec``, section 3)."""

import base64
from collections.abc import Iterator

import numpy as np

from shardcache.format.permutation import Integers

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

_PIECE_BYTES = 1 << 16  # what is unpacked at once, in arrays of eight times its size
_MAX_BYTES = 7  # of a number below 2^48


def encode(rows: Integers) -> str:
    """The text of some rows, ascending."""
    gaps = np.diff(rows, prepend=-1).astype(np.uint64) - np.uint64(1)
    shifts = np.arange(0, 7 * _MAX_BYTES, 7, dtype=np.uint64)
    parts = []
    for start in range(0, len(gaps), _PIECE_BYTES):
        rest = gaps[start : start + _PIECE_BYTES, None] >> shifts
        more = np.zeros(rest.shape, np.bool_)
        more[:, :-1] = rest[:, 1:] > 0
        kept = rest > 0
        kept[:, 0] = True
        digits = (rest & np.uint64(0x7F)).astype(np.uint8) | (more.astype(np.uint8) << np.uint8(7))
        parts.append(digits[kept].tobytes())
    return base64.b64encode(b"".join(parts)).decode()


def decode(text: str, count: int, samples: int) -> Integers:
    """The ``count`` rows that a text stands for; ValueError where it is no such text."""
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if not 0 < count <= len(data):
        raise ValueError(f"{len(data)} bytes where {count} rows are listed")
    rows, found = np.empty(count, np.int64), 0
    for piece in _pieces(data):
        gaps = _numbers(piece)
        if found + len(gaps) > count:
            raise ValueError(f"more than {count} rows")
        rows[found : found + len(gaps)] = gaps
        found += len(gaps)
    if found < count:
        raise ValueError(f"{found} rows where {count} are listed")
    rows += 1
    np.cumsum(rows, out=rows)
    rows -= 1
    if not ((rows >= 0) & (rows < samples)).all():  # of a sum that wraps, an earlier part was too large
        raise ValueError(f"a row that is not one of {samples}")
    return rows


def _pieces(data: Bytes) -> Iterator[Bytes]:
    """Parts that end where a number does."""
    start = 0
    while start < len(data):
        piece = data[start : start + _PIECE_BYTES]
        ends = np.flatnonzero(piece[-_MAX_BYTES:] < 0x80)
        if not len(ends):
            raise ValueError("a number without an end")
        size = max(0, len(piece) - _MAX_BYTES) + int(ends[-1]) + 1
        yield piece[:size]
        start += size


def _numbers(piece: Bytes) -> Integers:
    ends = np.flatnonzero(piece < 0x80)
    sizes = np.diff(ends, prepend=-1)
    if sizes.max() > _MAX_BYTES or (piece[ends[sizes > 1]] == 0).any():
        raise ValueError("a number that is longer than it must be")
    starts = ends + 1 - sizes
    numbers = np.zeros(len(ends), np.int64)
    for digit in range(int(sizes.max())):
        there = sizes > digit
        numbers[there] |= (piece[starts[there] + digit].astype(np.int64) & 0x7F) << (7 * digit)
    return numbers
