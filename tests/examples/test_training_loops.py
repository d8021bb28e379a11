"""The training loops as a user starts them: each learns, and goes on where an earlier run was."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shardcache.examples.digits import Digits

PYTHON = [sys.executable, "-m"]
TORCHRUN = [*PYTHON, "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
ACCELERATE = [*PYTHON, "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port"]


def run(command: list[str], name: str, out: Path, epochs: int) -> dict[int, float]:
    """The share of digits that are read after each epoch."""
    port = []
    if "port" in command[-1]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = [str(free.getsockname()[1])]
    launched = [*command, *port] if command == PYTHON else [*command, *port, "-m"]
    done = subprocess.run(
        [*launched, f"shardcache.examples.{name}", "--out", str(out), "--epochs", str(epochs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=out,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ShardCacheWarning" not in done.stderr
    found = re.findall(r"^epoch (\d+): ([\d.]+)% of the digits are read$", done.stdout, re.MULTILINE)
    return {int(epoch): float(share) for epoch, share in found}


@pytest.mark.parametrize("name", ["plain_loop", "lightning_module", "accelerate_loop"])
def test_it_learns_and_goes_on_where_an_earlier_run_was(tmp_path: Path, name: str) -> None:
    first = run(PYTHON, name, tmp_path, 2)
    assert list(first) == [0, 1]
    second = run(PYTHON, name, tmp_path, 4)
    assert max(second) == 3
    assert 0 not in second
    assert second[3] > 90 > first[0]


def test_the_plain_loop_sees_the_same_batches_on_two_ranks(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    expected = run(PYTHON, "plain_loop", alone, 3)
    found = run(TORCHRUN, "plain_loop", together, 2) | run(PYTHON, "plain_loop", together, 3)
    assert found == pytest.approx(expected, abs=0.6)  # gradients are added in another order


def test_the_loop_with_accelerate_runs_on_two_ranks(tmp_path: Path) -> None:
    assert run(ACCELERATE, "accelerate_loop", tmp_path, 4)[3] > 85


def test_every_training_loop_is_short() -> None:
    for name in ("plain_loop", "lightning_module", "accelerate_loop"):
        source = Path(sys.modules[Digits.__module__].__file__ or "").with_name(f"{name}.py")
        assert len(source.read_text(encoding="utf-8").splitlines()) <= 80
