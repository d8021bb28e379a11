"""The remark beside a cache: what it says, what it does not, and what it does when it is not what was written."""

import getpass
import json
import os
import platform
from pathlib import Path

import pytest

import shardcache
from shardcache.format import provenance, spec


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    shardcache.build([1, 2, 3], tmp_path / "cache", progress=False)
    return tmp_path / "cache"


def test_it_says_when_how_long_by_what_and_where(cache: Path) -> None:
    made = shardcache.open(cache).info()["provenance"]
    assert made["factory"] == "builtins:list"
    assert made["versions"]["python"] == platform.python_version()
    assert made["versions"]["shardcache"] == shardcache.__version__
    assert made["seconds"] >= 0
    assert made["built"].endswith("Z")


def test_it_says_nothing_private(cache: Path, tmp_path: Path) -> None:
    text = (cache / spec.PROVENANCE_NAME).read_text()
    for private in (str(tmp_path), getpass.getuser() + "@", platform.node() or "no name", os.environ["PATH"]):
        assert private not in text


def test_it_is_no_part_of_the_cache(cache: Path, tmp_path: Path) -> None:
    before = shardcache.open(cache).digest
    (cache / spec.PROVENANCE_NAME).unlink()
    again = shardcache.open(cache)
    assert (again.digest, again.info()["provenance"], list(again)) == (before, None, [1, 2, 3])
    assert shardcache.verify(cache).notes == ()


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text(json.dumps({"built": 1})),
        lambda path: path.write_bytes(b"\xff" * 200_000),
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("manifest.json"),
        lambda path: path.symlink_to(path.name),
    ],
)
def test_what_is_not_what_was_written_is_taken_for_absent(cache: Path, put) -> None:
    (cache / spec.PROVENANCE_NAME).unlink()
    put(cache / spec.PROVENANCE_NAME)
    before = len(os.listdir("/proc/self/fd"))
    assert provenance.read(cache) is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(shardcache.open(cache)) == [1, 2, 3]
