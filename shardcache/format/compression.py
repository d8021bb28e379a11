"""Bytes <-> compressed bytes: the only module that imports zstandard."""

import threading
from typing import Any

import zstandard

from shardcache.errors import UsageError

NONE, ZSTD = 0, 1
MIN_LEVEL, MAX_LEVEL = -50, 22
MAX_RATIO = 1 << 15  # a block of a frame takes at least 4 bytes and holds at most 128 KiB


class FrameError(Exception):
    """Stored bytes that are not one zstd frame of the stated size; the message says in which way."""


_thread = threading.local()


def parse_codec(codec: str) -> int | None:
    """The zstd level of ``"zstd"`` or ``"zstd:LEVEL"``, None for ``"none"``; :class:`UsageError` of anything else."""
    if codec == "none":
        return None
    name, _, level = codec.partition(":")
    try:
        number = int(level or 3)
    except ValueError:
        number = MAX_LEVEL + 1
    if name != "zstd" or not MIN_LEVEL <= number <= MAX_LEVEL:
        raise UsageError(
            f"codec {codec!r}: must be 'auto', 'none', 'zstd' or 'zstd:LEVEL' with LEVEL {MIN_LEVEL}..{MAX_LEVEL}"
        )
    return number


def compress(data: Any, level: int) -> bytes:
    """One frame: content size, no checksum, no dictionary; the same bytes for the same data and version of zstd."""
    cached: dict[int, zstandard.ZstdCompressor] = _thread.__dict__.setdefault("compressors", {})
    if level not in cached:
        cached[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return cached[level].compress(data)


def decompress_into(stored: Any, out: memoryview) -> None:
    """Fill ``out`` with the content of the one frame in ``stored``.

    The frame's header is checked before zstd allocates anything. One decompressor a thread: shared ones crash.
    """
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
