"""Each benchmark runs by itself, in its short form, and writes its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_runs_in_its_short_form(name: str, tmp_path: Path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(BENCHMARKS / name),
        "--short",
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert json.loads((tmp_path / "found.json").read_text())
