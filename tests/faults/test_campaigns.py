"""Every row of the table of faults, a little of it; ``tools/torture --long`` does all."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from shardcache.format import block
from tests.faults import table, torture
from tests.faults.children import Aside, in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.table import CAMPAIGNS


@pytest.fixture(scope="module")
def alone() -> Iterator[Executor]:
    """A process without the threads of the one that tests run in, which their children would miss."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin) as pool:
        yield pool


def begin() -> None:
    """As ``tools/torture`` is."""
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)


def campaign(name: str) -> Figures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return table.run(name, Asked(CAMPAIGNS[name].short)).figures


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_promise_is_kept_under_a_little_torture(alone: Executor, name: str) -> None:
    figures = alone.submit(campaign, name).result()
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

    figures = in_children(trial, range(8), hang_s=3, memory_bytes=64 << 20)
    assert figures.counts == {"right": 5, "signal": 1, "hang": 1, "memory": 1}
    assert [miss.partition(":")[0] for miss in figures.misses] == ["trial 2", "trial 4", "trial 6"]


def test_a_child_that_hangs_says_where_and_one_that_waits_for_a_processor_does_not_hang() -> None:
    def trial(number: int) -> Outcome:
        if number == 0:
            deadline = time.process_time() + 4  # at work, longer than it may be silent
            while time.process_time() < deadline:
                pass
        if number == 1:
            threading.Event().wait()
        return Outcome("right")

    figures = in_children(trial, range(3), hang_s=1)
    assert figures.counts == {"right": 2, "hang": 1}
    assert "in wait" in figures.misses[0]


def test_trials_follow_from_their_numbers_wherever_a_run_begins() -> None:
    def trial(number: int) -> Outcome:
        return Outcome("silent", str(number * number))

    whole = in_children(trial, Asked(6).numbers)
    parts = in_children(trial, Asked(4).numbers)
    parts += in_children(trial, Asked(2, first=4).numbers)
    assert parts == whole
    assert Asked(5, first=4).within(6) == range(4, 6)
    order = Asked(1, seed=3).order(range(9))
    assert sorted(order) == list(range(9))
    assert order == Asked(2, seed=3, first=5).order(range(9)) != Asked(1, seed=4).order(range(9))


def test_what_a_process_beside_takes_in_memory_is_not_counted() -> None:
    def begin() -> None:
        beside.append(Aside(lambda number: len(bytearray(100 << 20)) + number))

    def trial(number: int) -> Outcome:
        beside[0](number)
        return Outcome("right")

    beside: list[Aside] = []
    assert in_children(trial, range(3), memory_bytes=64 << 20, prepare=begin).counts == {"right": 3}


def test_a_child_has_a_fork_server_of_its_own() -> None:
    def trial(number: int) -> Outcome:
        process = multiprocessing.get_context("forkserver").Process(target=int)
        process.start()
        process.join()
        return Outcome("right" if process.exitcode == 0 else "exception")

    assert trial(0).kind == "right"  # and now this process has one
    assert in_children(trial, range(2)).counts == {"right": 2}
