"""Each benchmark runs by itself, in its short form, and writes its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("arguments", [["memory.py", "--short"], ["scale.py", "--short"]], ids=lambda given: given[0])
def test_a_benchmark_runs_in_its_short_form(arguments: list[str], tmp_path: Path):
    name, *options = arguments
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / name), *options, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert json.loads((tmp_path / "found.json").read_text())
