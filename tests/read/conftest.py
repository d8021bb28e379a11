"""Caches that are built once and read by all."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import shardcache
from shardcache import Cache, ShardCacheWarning
from tests.read.sources import SOURCES, Numbers

BLOCK_BYTES = {"images": 600, "texts": 700, "numbers": 400, "detections": 900}  # many blocks, several shards


@pytest.fixture(scope="session")
def cache_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Cache]:
    """A cache of one of the sources, which nobody may change."""
    built: dict[tuple[str, str, int], Cache] = {}
    root: Path = tmp_path_factory.mktemp("caches")

    def build(name: str, layout: str = "shuffled", block_bytes: int | None = None) -> Cache:
        key = name, layout, block_bytes or BLOCK_BYTES.get(name, 4096)
        if key not in built:
            path = root / f"{name} {layout} {key[2]}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ShardCacheWarning)  # of labels that are sorted
                built[key] = shardcache.build(SOURCES[name], path, layout=layout, block_bytes=key[2], progress=False)
        return built[key]

    return build


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One that is stored as it is."""
    path = tmp_path_factory.mktemp("plain") / "cache"
    return shardcache.build(Numbers(3000), path, codec="none", block_bytes=4000, progress=False)
