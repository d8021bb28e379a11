"""The quickstart as a new user runs it: in a process of its own, with warnings as errors, twice."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shardcache.examples.python_sources import PythonSources

IGNORED = [  # as in pyproject.toml: what torch says of the machine, and of fork
    "ignore:This DataLoader will create:UserWarning",
    "ignore:This process:DeprecationWarning",
]


def run_quickstart(out: Path) -> str:
    strict = [word for one in ("error", *IGNORED) for word in ("-W", one)]
    command = [sys.executable, *strict, "-m", "shardcache.examples.quickstart"]
    small = ["--out", str(out), "--max-files", "300", "--max-bytes", "4000000", "--steps", "40"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def losses(report: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"step +\d+ +loss ([\d.]+)", report)]


def test_the_first_run_builds_and_learns_and_the_second_reuses(tmp_path: Path):
    first = run_quickstart(tmp_path)
    assert "built by 2 processes" in first
    assert 7 < losses(first)[0] < 9
    assert losses(first)[-1] < losses(first)[0] - 1
    if sys.platform.startswith("linux"):
        for name in ("trainer", "worker 0", "worker 1"):
            assert re.search(rf"{name} +[\d,.]+ MB +[\d,.]+ MB", first), first

    second = run_quickstart(tmp_path)
    assert "reused" in second
    assert "built by" not in second
    assert losses(second)[-1] < losses(second)[0] - 1


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in (("b.py", "2"), ("a/x.py", "x = 1\n"), ("a/empty.py", ""), ("a/notes.txt", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "again.py").symlink_to(tmp_path / "b.py")
    return tmp_path


def test_the_sources_are_sorted_and_each_file_comes_once(tree: Path):
    ds = PythonSources([tree, tree / "a"])
    assert [ds[index]["path"] for index in range(len(ds))] == ["a/x.py", "again.py"]
    assert ds[0]["source"].dtype == np.uint8
    assert ds[0]["source"].tobytes() == b"x = 1\n"


def test_the_sources_keep_to_their_limits(tree: Path):
    for number in range(20):
        (tree / f"many{number:02}.py").write_bytes(b"#" * 100)
    assert len(PythonSources([tree], max_files=5)) <= 5
    few = PythonSources([tree], max_bytes=350)
    assert 0 < sum(len(few[index]["source"]) for index in range(len(few))) <= 350
