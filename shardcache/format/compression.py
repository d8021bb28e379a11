"""Bytes <-> compressed bytes: the only module that imports zstandard and lzma."""

import threading
from functools import cache
from typing import Any, Literal

import numpy as np
import zstandard

from shardcache.errors import UsageError

NONE, ZSTD, LZMA = 0, 1, 2
MIN_LEVEL, MAX_LEVEL = -50, 22
MAX_RATIO = 1 << 15  # a block of a frame takes at least 4 bytes and holds at most 128 KiB; LZMA2 stays below 2^13
DICTIONARY_BYTES = 4 << 10, 16 << 20  # of LZMA2, the least and the most: a writer takes twelve times as much memory
MAX_DISTANCE = 4
_TRIED_BYTES = 128 << 10
_WORTH = 0.97
_STEP_BYTES = 1 << 20

Level = int | Literal["lzma"]  # of zstd, or another method


class FrameError(Exception):
    """Stored bytes that are not the one frame or stream of the stated size; the message says in which way."""


_thread = threading.local()


def parse_codec(codec: str) -> Level | None:
    """What :func:`compress` is to be given, None for ``"none"``; :class:`UsageError` of what is no codec.

    That is the zstd level of ``"zstd"`` or ``"zstd:LEVEL"``, or ``"lzma"``.
    """
    if codec == "none":
        return None
    if codec == "lzma":
        _lzma()
        return "lzma"
    name, _, level = codec.partition(":")
    try:
        number = int(level or 3)
    except ValueError:
        number = MAX_LEVEL + 1
    if name != "zstd" or not MIN_LEVEL <= number <= MAX_LEVEL:
        raise UsageError(
            f"codec {codec!r}: must be 'auto', 'none', 'lzma', 'zstd' or 'zstd:LEVEL' with LEVEL "
            f"{MIN_LEVEL}..{MAX_LEVEL}"
        )
    return number


def codec_name(level: Level | None) -> str:
    """As :func:`parse_codec` takes it, a level always said."""
    return "none" if level is None else f"zstd:{level}" if isinstance(level, int) else level


def method(level: Level) -> int:
    """The number of the method in a stored value."""
    return ZSTD if isinstance(level, int) else LZMA


def compress(data: Any, level: Level) -> bytes:
    """The same bytes for the same data and versions of zstd and liblzma.

    Of zstd one frame: content size, no checksum, no dictionary. Of LZMA the distance of the delta filter, and a raw
    stream.
    """
    return _compress_zstd(data, level) if isinstance(level, int) else _compress_lzma(data)


def _compress_zstd(data: Any, level: int) -> bytes:
    cached: dict[int, zstandard.ZstdCompressor] = _thread.__dict__.setdefault("compressors", {})
    if level not in cached:
        cached[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return cached[level].compress(data)


def _compress_lzma(data: Any) -> bytes:
    lzma, distance = _lzma(), _best_distance(data)
    filters = _filters(len(data), distance)
    filters[-1]["preset"] = 9 | lzma.PRESET_EXTREME
    return b"".join((bytes([distance]), lzma.compress(data, lzma.FORMAT_RAW, filters=filters)))


def _best_distance(data: Any) -> int:
    """The distance at which differences of bytes compress best, as of the pixels of a photograph; 0 for none.

    Tried with zstd on a piece from the middle: little work beside what follows.
    """
    start = max(0, len(data) - _TRIED_BYTES) // 2
    piece = np.frombuffer(data, np.uint8)[start : start + _TRIED_BYTES]
    best, least = 0, len(_compress_zstd(piece, 1)) * _WORTH
    for distance in range(1, min(MAX_DISTANCE, len(piece) - 1) + 1):
        differences = piece.copy()
        differences[distance:] -= piece[:-distance]
        found = len(_compress_zstd(differences, 1))
        if found < least:
            best, least = distance, found
    return best


def _filters(size: int, distance: int) -> list[dict[str, int]]:
    """The chain for a body of ``size`` bytes."""
    lzma, (least, most) = _lzma(), DICTIONARY_BYTES
    chain = [{"id": lzma.FILTER_LZMA2, "dict_size": min(max(size, least), most)}]
    return [{"id": lzma.FILTER_DELTA, "dist": distance}, *chain] if distance else chain


@cache
def _lzma() -> Any:
    try:
        import lzma
    except ImportError:
        raise UsageError("codec 'lzma': this Python was built without its module lzma") from None
    return lzma


def decompress_into(stored: memoryview | bytes, out: memoryview, kind: int = ZSTD) -> None:
    """Fill ``out`` with the content of ``stored``, compressed by the method ``kind``."""
    if kind == LZMA:
        _lzma_into(stored, out)
    else:
        _zstd_into(stored, out)


def _lzma_into(stored: memoryview | bytes, out: memoryview) -> None:
    """What it takes memory for is known before: the dictionary, no larger than ``out``."""
    lzma = _lzma()
    if not len(stored) or stored[0] > MAX_DISTANCE:
        raise FrameError("no stream with a known distance")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(len(out), stored[0]))
    filled, data = 0, stored[1:]
    try:
        while not decoder.eof:
            piece = decoder.decompress(data, min(_STEP_BYTES, len(out) - filled + 1))
            if len(piece) > len(out) - filled or not (piece or decoder.eof):
                break
            out[filled : filled + len(piece)] = piece
            filled, data = filled + len(piece), b""
    except (lzma.LZMAError, EOFError) as error:
        raise FrameError(f"not an LZMA2 stream: {error}") from None
    if not decoder.eof or decoder.unused_data or filled != len(out):
        raise FrameError(f"not one LZMA2 stream of {len(out)} bytes")


def _zstd_into(stored: Any, out: memoryview) -> None:
    """The frame's header is checked before zstd allocates anything. One decompressor a thread: shared ones crash."""
    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != len(out) or frame.dict_id or frame.window_size > max(len(out), 1 << 10):
            raise FrameError(f"a frame of {frame.content_size} bytes where {len(out)} were stored")
        decompressor = getattr(_thread, "decompressor", None)
        if decompressor is None:
            decompressor = _thread.decompressor = zstandard.ZstdDecompressor()
        with decompressor.stream_reader(stored, read_across_frames=False) as reader:
            filled = 0
            while filled < len(out):
                count = reader.readinto(out[filled:])
                if not count:
                    raise FrameError(f"a frame that ends after {filled} of {len(out)} bytes")
                filled += count
    except zstandard.ZstdError as error:
        raise FrameError(f"not a zstd frame: {error}") from None


def library_version() -> str:
    """The version of libzstd, which decides about the exact bytes that are written."""
    return ".".join(str(part) for part in zstandard.ZSTD_VERSION)
