"""A lease on a shard in one call."""

from pathlib import Path

from shardcache.format.leases import ShardFile, ShardReader
from shardcache.format.pages import ShardSeal


def lease(path: Path, seal: ShardSeal, name: str, io: str = "mmap", dir_fd: int | None = None) -> ShardReader:
    """On a shard that is read once."""
    return ShardFile(path, seal, name, io, dir_fd).lease()
