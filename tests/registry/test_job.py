"""Ranks of a job that ask for one cache: one builds, the others wait, and no message is sent between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.registry.changes import ROOT

SCRIPT = '''
"""A rank: its process group's time is up long before the build is done."""
import datetime, json, os, pathlib, sys, time
import torch.distributed as dist
import shardcache


class Slow:
    def __init__(self, value=1):
        with open("made", "a") as log:
            log.write(".")

    def __len__(self):
        return 400

    def __getitem__(self, index):
        time.sleep(0.02)
        return index * int(pathlib.Path("value").read_text())


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=2))
    said = {"rank": dist.get_rank()}
    try:
        cache = shardcache.get_or_build(Slow, name="slow", cache_dir="home", **json.loads(sys.argv[1]))
        said |= {"digest": cache.digest, "last": cache[399], "inode": os.stat(cache.path / "manifest.json").st_ino}
    except shardcache.StaleCacheError as error:
        said["stale"] = str(error)
    pathlib.Path(f"said-{dist.get_rank()}").write_text(json.dumps(said))
'''


def run(folder: Path, port: int, ranks: int = 4, **options: object) -> list[dict[str, object]]:
    (folder / "train.py").write_text(SCRIPT)
    (folder / "made").unlink(missing_ok=True)
    processes = []
    for rank in range(ranks):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
        }
        command = [sys.executable, "train.py", json.dumps(options)]
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [json.loads((folder / f"said-{rank}").read_text()) for rank in range(ranks)]


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_one_rank_builds_and_a_build_outlives_the_time_of_the_process_group(tmp_path: Path, port: int) -> None:
    (tmp_path / "value").write_text("2")
    said = run(tmp_path, port)
    assert len({one["inode"] for one in said}) == 1
    assert {one["last"] for one in said} == {798}
    assert (tmp_path / "made").read_text() == "."
    first = {one["inode"] for one in said}
    again = run(tmp_path, port, ranks=2, rebuild=True)
    assert len({one["inode"] for one in again}) == 1  # built once more, by one
    assert {one["inode"] for one in again} != first
    assert (tmp_path / "made").read_text() == "."


def test_a_stale_cache_ends_the_job_and_the_next_one_builds_it_anew(tmp_path: Path, port: int) -> None:
    """What the other rank has until then is the old cache or, where it looks after it was given up, a new one."""
    (tmp_path / "value").write_text("2")
    options = {"version": "1", "on_stale": "rebuild", "num_workers": 2}
    run(tmp_path, port, ranks=1, **options)
    (tmp_path / "value").write_text("3")
    said = run(tmp_path, port, ranks=2, **options)
    assert "start the job again, which builds it anew" in str(said[0]["stale"])
    assert "last" not in said[0]
    assert {one["last"] for one in run(tmp_path, port, ranks=2, **options)} == {1197}
