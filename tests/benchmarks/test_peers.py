"""The comparison with the peers that are installed here: each delivers what the source has, and is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.contender import Measuring
from benchmarks.peers.data import WORKLOADS, prepare
from benchmarks.peers.ours import DEFAULT
from benchmarks.peers.peer import WORKERS, Task

ROOT = Path(__file__).parents[2]


CASES = [("patches", "all", "none"), ("text", "litdata,webdataset", "cold,builds,smallest")]


@pytest.mark.parametrize(("workload", "peers", "parts"), CASES)
def test_the_peers_that_are_here_run_in_short_form(workload: str, peers: str, parts: str, tmp_path: Path):
    out = tmp_path / "out"
    options = [
        "--short",
        "--workload",
        workload,
        "--peers",
        peers,
        "--parts",
        parts,
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "litdata is left out: litdata is not installed" in done.stdout
    found = json.loads((out / f"{workload}.json").read_text())["peers"]
    assert {"shardcache", "webdataset"} <= set(found)
    assert peers != "all" or {"memory", "objects", "memmap", "hf-map", "hf-iterable"} <= set(found)
    assert all(peer["checked"] and min(map(min, peer["rates"].values())) > 0 for peer in found.values())
    assert all(WORKERS in peer["rates"] for name, peer in found.items() if name != "memory")
    assert f"## {workload}" in (out / "README.md").read_text()


def test_a_loader_that_delivers_something_else_is_found_out(tmp_path: Path):
    source = prepare(WORKLOADS["text"], tmp_path, short=True)
    measuring = Measuring(DEFAULT, Task(source, tmp_path / "cache"))
    measuring.write()
    measuring.check("in process")
    sums = source.checksums()
    sums[5] += 1
    source.checksums = lambda: sums  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="sample 5 is not what the source has"):
        measuring.check("in process")


def test_a_loader_that_leaves_a_sample_out_is_found_out(tmp_path: Path):
    source = prepare(WORKLOADS["text"], tmp_path, short=True)
    measuring = Measuring(DEFAULT, Task(source, tmp_path / "cache"))
    source.samples -= 1
    measuring.write()
    source.samples += 1
    with pytest.raises(AssertionError, match=r"1 samples did not come"):
        measuring.check("in process")
    with pytest.raises(AssertionError, match="599 samples in an epoch of 600"):
        measuring.measure("in process", 0, 60)
