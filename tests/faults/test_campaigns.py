"""Every row of the table of faults, a little of it; ``tools/torture --long`` does all."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from shardcache.format import block
from tests.faults import table, torture
from tests.faults.children import in_children
from tests.faults.figures import Outcome
from tests.faults.table import CAMPAIGNS


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_promise_is_kept_under_a_little_torture(name: str) -> None:
    figures = table.run(name, CAMPAIGNS[name].short, seed=0).figures
    if figures.skipped:
        pytest.skip(figures.skipped)
    assert figures, f"{figures}\n" + "\n".join(figures.misses)


class Blind:
    """A hasher to which everything is the same."""

    def __init__(self, data: object = b"", seed: int = 0) -> None: ...

    def update(self, data: object) -> None: ...

    def intdigest(self) -> int:
        return 0


def test_a_broken_promise_is_a_miss_and_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a look at their checksums, damaged values are right to a reader."""
    monkeypatch.setattr(block.xxhash, "xxh3_64_intdigest", lambda data, seed=0: 0)
    monkeypatch.setattr(block.xxhash, "xxh3_64", Blind)
    monkeypatch.setattr(
        sys, "argv", ["torture", "--only", "flips", "--trials", "60", "--json", str(tmp_path / "f.json")]
    )
    assert torture.main() == 1
    assert "MISSED" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "f.json").read_text())
    assert not row["kept"]
    assert row["outcome"]["silent"] > 0
    assert row["trials"] == 60


def test_what_ends_a_child_is_counted_as_its_trial_and_the_next_ones_are_done() -> None:
    def trial(number: int) -> Outcome:
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 4:
            time.sleep(60)
        held = bytearray(100 << 20) if number == 6 else b""
        return Outcome("right", str(len(held)))

    figures = in_children(trial, 8, hang_s=3, memory_bytes=64 << 20)
    assert figures.counts == {"right": 5, "signal": 1, "hang": 1, "memory": 1}
    assert [miss.partition(":")[0] for miss in figures.misses] == ["trial 2", "trial 4", "trial 6"]


def test_a_child_has_a_fork_server_of_its_own() -> None:
    def trial(number: int) -> Outcome:
        process = multiprocessing.get_context("forkserver").Process(target=int)
        process.start()
        process.join()
        return Outcome("right" if process.exitcode == 0 else "exception")

    assert trial(0).kind == "right"  # and now this process has one
    assert in_children(trial, 2).counts == {"right": 2}
