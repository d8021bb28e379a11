"""Caches that are built once and read by all."""

from collections.abc import Callable
from pathlib import Path

import pytest

import shardcache
from shardcache import Cache
from tests.read.sources import Numbers

CacheOf = Callable[[int], Cache]


@pytest.fixture(scope="session")
def numbers_of(tmp_path_factory: pytest.TempPathFactory) -> CacheOf:
    """A cache of so many numbers, in blocks of 25, which nobody may change."""
    root: Path = tmp_path_factory.mktemp("numbers")

    def build(size: int) -> Cache:
        return shardcache.build(Numbers(size), root / str(size), block_bytes=1000, if_exists="open", progress=False)

    return build
