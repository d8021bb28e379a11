"""A cache of several shards, and ways to damage it."""

import os
import shutil
from pathlib import Path

import pytest

import shardcache
from shardcache.format import spec
from tests.integrity.sources import Numbered


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards, which so little data would not have."""
    path = tmp_path_factory.mktemp("sound") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "MIN_SHARD_BYTES", 16 << 10)
        shardcache.build(Numbered, path, block_bytes=8 << 10, progress=False)
    assert len(list(path.glob("shard-*.lmdb"))) > 4
    return path


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cache"))


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}
