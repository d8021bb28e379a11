"""Caches that are built once and read by all."""

from collections.abc import Callable
from pathlib import Path

import pytest

import shardcache
from shardcache import Cache
from tests.read.sources import SOURCES

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
            built[key] = shardcache.build(SOURCES[name], path, layout=layout, block_bytes=key[2], progress=False)
        return built[key]

    return build
