"""Small caches that have many blocks and many shards all the same."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardcache.format import spec


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 4000)
    monkeypatch.setattr(spec, "MIN_SHARDS", 8)


@pytest.fixture
def leaves_nothing(tmp_path: Path) -> Callable[[], None]:
    """To be called after a failed build: neither cache nor leftovers."""
    before = {path.name for path in tmp_path.iterdir()}

    def check() -> None:
        assert {path.name for path in tmp_path.iterdir()} == before

    return check


def digests(path: Path) -> dict[str, str]:
    """Of all files of a cache; where it comes from is no part of it."""
    there = [file for file in sorted(path.iterdir()) if file.name != spec.PROVENANCE_NAME]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in there}


def files(path: Path) -> Any:
    return sorted(file.name for file in path.iterdir())
