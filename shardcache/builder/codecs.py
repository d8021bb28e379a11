"""``codec="auto"``: the codec of a column, from what real rows compress to and a table of speeds."""

from collections.abc import Sequence
from typing import Any

from shardcache.format import columns, compression
from shardcache.format.schema import Column

# Bytes of body that one core decodes in a second, by zstd level: a table, since a stopwatch would make builds differ;
# benchmarks/codecs.py measured it. Higher levels save a few percent more and take 3 to 100 times as long to build.
DECODE_SPEED = {-7: 1.83e9, -5: 1.77e9, -3: 1.62e9, -1: 1.57e9, 1: 1.38e9, 3: 1.34e9}
COPY_SPEED = 16e9
_STORAGE_SPEED = 5e8  # bytes a second from a disk or a shared file system, where bytes saved are time saved
_MIN_SAVING = 0.07
_MAX_BLOCKS = 16
_MAX_BYTES = 4 << 20  # of large blocks, only pieces are compressed
_PIECE_BYTES = 512 << 10


def choose(column: Column, values: Sequence[Any], rows_per_block: int) -> tuple[str, str]:
    """(codec, why) for a column; ``values`` are its probed rows, cut into blocks as the build will."""
    bodies: list[bytes] = []
    for start in range(0, min(len(values), rows_per_block * _MAX_BLOCKS), rows_per_block):
        encoded = columns.encode(column, values[start : start + rows_per_block])
        if encoded is not None:
            bodies += [encoded.body, *encoded.large_rows.values()]
    if not any(bodies):
        return "zstd:1", "nothing in the probed samples"
    bodies = _pieces(bodies)
    raw = sum(map(len, bodies))
    best, cost, stored_best = "none", raw / _STORAGE_SPEED + raw / COPY_SPEED, raw
    for level, speed in DECODE_SPEED.items():
        stored = sum(len(compression.compress(body, level)) for body in bodies)
        seconds = stored / _STORAGE_SPEED + raw / speed
        if stored < raw * (1 - _MIN_SAVING) and seconds < cost:
            best, cost, stored_best = f"zstd:{level}", seconds, stored
    ratio = raw / stored_best
    if best == "none":
        return best, "does not compress"
    return best, f"ratio {ratio:.2f} on {len(values)} probed samples"


def _pieces(bodies: list[bytes]) -> list[bytes]:
    """What is to be compressed of bodies: all, or evenly spaced pieces of the whole where they are large."""
    raw = sum(map(len, bodies))
    if raw <= _MAX_BYTES:
        return bodies
    step = -(-raw * _PIECE_BYTES // _MAX_BYTES)
    return [body[start : start + _PIECE_BYTES] for body in bodies for start in range(0, len(body), step)]
