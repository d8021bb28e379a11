"""Workers do not outlive the training process, however they were started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shardcache
from tests.processes import alive_after

TRAINING = """
import sys, time
import shardcache
from torch.utils.data import DataLoader

if __name__ == "__main__":
    ds = shardcache.CachedDataset(sys.argv[1], batch_size=4, shuffle=True)
    batches = iter(DataLoader(ds, batch_size=None, num_workers=2, multiprocessing_context=sys.argv[2]))
    next(batches)
    print(*(process.pid for process in batches._workers), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="asks /proc which processes there are")
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_workers_end_when_the_training_process_is_killed(start_method: str, tmp_path: Path) -> None:
    shardcache.build(list(range(1000)), tmp_path / "cache", progress=False)
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "cache"), start_method]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as training:
        assert training.stdout is not None
        workers = [int(pid) for pid in training.stdout.readline().split()]
        assert len(workers) == 2
        training.send_signal(signal.SIGKILL)
    left = alive_after(20, workers)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
