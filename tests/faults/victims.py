"""The small cache that campaigns damage, and everything that can be read of it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import shardcache
from shardcache.format import leases, spec
from tests.exact import exact

SAMPLES = 44
SHARED_MEMORY = Path("/dev/shm")

Readable = tuple[list[Any], list[Any]]


class Victim:
    """Columns of every form: fixed, ragged, masked, nested, text, absent; one row that has a key of its own."""

    def __init__(self, size: int = SAMPLES, salt: int = 0) -> None:
        self.size, self.salt = size, salt

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = np.random.default_rng([index, self.salt])
        sample = {
            "image": draw.integers(0, 256, (16, 10, 3), np.uint8),
            "label": index % 7 + self.salt,
            "score": float(draw.random()),
            "text": f"sample {index} " * (index % 6),
            "tokens": np.arange(index % 9, dtype=np.uint16) * index,
            "half": torch.full((8,), index, dtype=torch.bfloat16),
            "maybe": None if index % 3 else index,
            "tags": [{"name": "a" * k, "at": (k, index)} for k in range(index % 3)],
            "large": draw.bytes(9000 if index == 5 else 40),
        }
        if index % 4 == 0:
            sample["rare"] = b"only now and then"
        return sample


CODECS = {"image": "none", "half": "none", "label": "zstd:1", "text": "zstd:3", "large": "none"}


@contextmanager
def small_limits(**limits: int) -> Iterator[None]:
    """Several shards in a small cache, and rows of more than 4 KiB under keys of their own; in forked children too."""
    with mock.patch.multiple(
        spec, **{"MIN_SHARD_BYTES": 10 << 10, "MIN_SHARDS": 3, "LARGE_ROW_BYTES": 4 << 10, **limits}
    ):
        yield


@contextmanager
def workshop() -> Iterator[Path]:
    """A directory for as long as the block lasts: in memory, where there is such a place."""
    inside = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="shardcache-faults-", dir=inside) as directory:
        yield Path(directory)
        leases.close_all()


def build(dataset: Any, path: Path, **options: Any) -> shardcache.Cache:
    """With columns that are compressed and columns that are not, in small blocks; on disks that are too small."""
    defaults = {"codec": CODECS, "block_bytes": 3 << 10, "progress": False, "force": True}
    return shardcache.build(dataset, path, **{**defaults, **options})


@contextmanager
def victim(size: int = SAMPLES, **limits: int) -> Iterator[Path]:
    """A cache of a :class:`Victim` that may be damaged, while :func:`small_limits` hold."""
    with workshop() as directory, small_limits(**limits):
        path = directory / "cache"
        cache = build(Victim(size), path)
        assert len(cache.manifest.shards) >= 2
        assert cache.manifest.blocks > len(cache.manifest.shards)
        yield path


def rows(path: Path, io: str = "auto") -> list[Any]:
    """Every sample by random access, of files that are opened anew."""
    leases.close_all()
    return [exact(sample) for sample in shardcache.open(path, io=io)[:]]


def epoch(path: Path, io: str = "auto") -> list[Any]:
    """Every batch of an epoch, of files that are opened anew."""
    leases.close_all()
    dataset = shardcache.CachedDataset(path, io=io, batch_size=12, shuffle=True, seed=3, collate="list")
    return [exact(batch) for batch in dataset]


def readable(path: Path) -> Readable:
    return rows(path), epoch(path)
