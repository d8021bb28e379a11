"""shardcache repair."""

import json
from pathlib import Path

import pytest

import shardcache
from tests.cli.conftest import Process, error_of

SOURCE = """
class Squares:
    def __init__(self, count=50):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index, bytes([index]) * 5000
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "squares_to_repair.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    shardcache.build(f"{source}:Squares", path, codec="none", progress=False)
    shard = path / "shard-00000.lmdb"
    data = bytearray(shard.read_bytes())
    data[data.index(bytes([7]) * 5000)] ^= 1
    shard.write_bytes(data)
    return path


def test_a_damaged_cache_is_made_sound_again(process: Process, damaged: Path, source: Path):
    assert process("verify", damaged).returncode == 6
    done = process("repair", damaged, f"{source}:Squares", "--arg", "count=50")
    assert done.returncode == 0
    assert done.stdout == f"{damaged}: repaired: 1 shard built again and put back; all is as it was written\n"
    assert process("verify", damaged).returncode == 0
    again = process("repair", damaged, f"{source}:Squares", "--json")
    assert (again.returncode, json.loads(again.stdout)["restored"]) == (0, [])


def test_a_changed_dataset_leaves_it_damaged_and_builds_beside(process: Process, damaged: Path, source: Path):
    source.write_text(SOURCE.replace("* 5000", "* 4000"))
    beside = damaged.with_name("beside")
    done = process("repair", damaged, f"{source}:Squares", "--out", beside)
    assert done.returncode == 6
    assert "still damaged: 0 shards built again and put back, 1 would not be the same" in done.stdout
    assert process("verify", beside).returncode == 0


def test_a_damaged_manifest_is_an_error(process: Process, damaged: Path, source: Path):
    (damaged / "manifest.json").write_text("{}")
    done = process("repair", damaged, f"{source}:Squares")
    assert done.returncode == 5
    assert "build the cache anew" in error_of(done)


def test_verify_compares_with_a_digest_that_was_published(process: Process, damaged: Path, source: Path):
    process("repair", damaged, f"{source}:Squares")
    digest = process("info", damaged, "--digest").stdout.strip()
    assert process("verify", damaged, "--expect", digest.upper()).returncode == 0
    done = process("verify", damaged, "--expect", "0" * 64)
    assert done.returncode == 6
    assert f"the digest of the cache must be {'0' * 64}, is {digest}" in done.stdout
    assert "not the cache that was expected" in done.stdout
    assert "64 hex digits" in error_of(process("verify", damaged, "--expect", "abc"))
