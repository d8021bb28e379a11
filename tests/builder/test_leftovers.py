"""What a build finds in ``DIR.partial`` may be anybody's: it leads nowhere, it is not waited for, and it is told."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import shardcache
from shardcache import BuildMismatchError, CacheExistsError, StorageError
from shardcache.builder import staging, swap
from shardcache.builder.staging import progress_of
from shardcache.format import spec
from tests.builder.sources import Made, mixed

pytestmark = pytest.mark.usefixtures("many_shards")

DEEP = b'{"structure":' + b'{"type":"tuple","items":[' * 50_000


def build(path: Path) -> Any:
    return shardcache.build(
        Made(200, mixed), path, layout="source", block_bytes=20_000, progress=False, if_exists="replace"
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a cache is to be; what an interrupted build may have left lies beside it."""
    (tmp_path / "c.partial").mkdir()
    return tmp_path / "c"


@pytest.fixture
def interrupted(target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All shards and records of a build that ended before it was published."""

    class Ended(BaseException):
        pass

    def end(*_: object, **__: object) -> None:
        raise Ended

    with monkeypatch.context() as patched:
        patched.setattr(staging.Staging, "publish", end)
        with pytest.raises(Ended):
            build(target)
    return target.with_name("c.partial")


@pytest.mark.parametrize(
    "data", [DEEP, b'{"format":"\xff"}', b"{", 1 << 40], ids=["deep", "not text", "cut short", "a terabyte"]
)
@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
def test_a_plan_that_is_none_is_told(target: Path, name: str, data: bytes | int):
    plan = target.with_name("c.partial") / name
    plan.write_bytes(data if isinstance(data, bytes) else b"")
    if isinstance(data, int):
        os.truncate(plan, data)
    with pytest.raises(BuildMismatchError, match=r"c\.partial is damaged \(.*\); delete it"):
        build(target)
    assert progress_of(target) is None


def test_a_plan_of_no_rows_is_of_no_progress(target: Path):
    manifest = json.loads((build(target).path / "manifest.json").read_bytes())
    target.with_name("c.partial").mkdir()
    (target.with_name("c.partial") / "plan.json").write_text(json.dumps({**manifest, "rows_per_block": 0}))
    assert progress_of(target) is None


@pytest.mark.parametrize("name", ["plan.json", "shard-00000.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(interrupted: Path, name: str, make):
    (interrupted / name).unlink()
    make(interrupted / name)
    with pytest.raises(BuildMismatchError, match=f"{name} must be a regular file"):
        build(interrupted.with_name("c"))


@pytest.mark.parametrize("name", ["plan.json.new", "manifest.json.new", "shard-00000.lmdb", "shard-00000.json.new"])
def test_nothing_is_written_through_a_link(target: Path, name: str):
    precious = target.with_name("precious")
    precious.write_bytes(b"precious")
    (target.with_name("c.partial") / name).symlink_to(precious)
    assert len(build(target)) == 200
    assert precious.read_bytes() == b"precious"
    assert not any(file.is_symlink() for file in target.iterdir())


def test_a_directory_that_is_a_link_is_refused_and_what_is_in_it_stays(target: Path):
    other = target.with_name("other")
    other.mkdir()
    (other / "shard-00009.lmdb").write_bytes(b"precious")
    target.with_name("c.partial").rmdir()
    target.with_name("c.partial").symlink_to(other)
    with pytest.raises(StorageError, match="must be a directory, is a link"):
        build(target)
    assert [file.name for file in other.iterdir()] == ["shard-00009.lmdb"]


def test_files_of_somebody_else_are_neither_deleted_nor_published(target: Path):
    thesis = target.with_name("c.partial") / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(CacheExistsError, match=r"c\.partial: something else is here already \('thesis.txt'\)"):
        build(target)
    assert thesis.read_text() == "years of work"
    assert [file.name for file in thesis.parent.iterdir()] == ["thesis.txt"]
    thesis.unlink()
    assert len(build(target)) == 200


def test_a_shard_that_is_a_link_is_built_again(interrupted: Path):
    shard = interrupted / "shard-00001.lmdb"
    shutil.move(shard, interrupted.with_name("elsewhere"))
    shard.symlink_to(interrupted.with_name("elsewhere"))
    assert shardcache.verify(build(interrupted.with_name("c")).path)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 10**6},
        {"number": -1},
        {"totals": []},
        {"totals": [{"raw_bytes": -5}] * 7},
        {"seal": {"file_bytes": 4096, "structure": "x", "sha256": "x"}},
    ],
    ids=str,
)
def test_a_record_of_no_shard_of_the_plan_is_never_published(interrupted: Path, change: dict[str, Any]):
    record = json.loads((interrupted / "shard-00000.json").read_bytes()) | change
    whole = (
        interrupted / "shard-00000.lmdb"
    ).read_bytes()  # of the size that the record says, at the place that it says
    (interrupted / spec.shard_name(record["number"])).write_bytes(whole[: record["seal"]["file_bytes"]])
    (interrupted / "shard-00000.json").write_text(json.dumps(record))
    with pytest.raises(BuildMismatchError, match=r"c\.partial is damaged"):
        build(interrupted.with_name("c"))
    assert not interrupted.with_name("c").exists()


def test_a_cache_is_replaced_without_a_moment_in_which_there_is_none(target: Path, monkeypatch: pytest.MonkeyPatch):
    """Both directories change places at once; where a system cannot do that, one after the other."""
    build(target)
    seen = []
    rename = Path.rename

    def watched(self: Path, other: Path) -> Path:
        done = rename(self, other)
        seen.append(target.exists())
        return done

    monkeypatch.setattr(Path, "rename", watched)
    if not swap.exchange(*(_made(target.with_name(name)) for name in "ab")):
        pytest.skip("this system has no such call")
    build(target)
    assert all(seen)
    seen.clear()
    monkeypatch.setattr(swap, "exchange", lambda *_: False)
    build(target)
    assert not all(seen)
    assert len(shardcache.open(target)) == 200
    assert not list(target.parent.glob("c?*"))


def _made(path: Path) -> Path:
    path.mkdir()
    return path
