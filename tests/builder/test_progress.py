"""What a build shows of itself: in a terminal, in a log, to a program; and that its numbers are true."""

import json
import os
import pty
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardcache
from shardcache import StorageError, UsageError
from shardcache.builder.progress import Progress, State
from shardcache.builder.shards import Report
from tests.builder.sources import Made, Traced, factory
from tests.format.test_shard import small_disk


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"block_bytes": 3000, **options})


def test_a_log_gets_the_estimate_before_and_a_line_at_the_end(tmp_path, capfd):
    build(factory(300), tmp_path / "c")
    out, lines = capfd.readouterr()
    assert out == ""
    first, columns, last = lines.splitlines()
    assert first.startswith(f"building {tmp_path}/c: 300 samples in 1 shard, about ")
    assert re.match(r"columns: image: zstd:-?\d+, ratio [\d.]+ on \d+ probed samples; label: ", columns)
    info = shardcache.open(tmp_path / "c").info()
    assert last.startswith("300 of 300 samples (100%), ")
    assert f" for {info['raw_bytes'] / 1000:.1f} kB (ratio " in last
    assert "samples/s, in " in last


def test_a_log_gets_a_line_now_and_then_while_samples_are_slow(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("shardcache.builder.progress.LINE_SECONDS", 0.2)
    monkeypatch.setattr("shardcache.builder.shards._SLOW_SECONDS", 0.1)
    build(Traced(100, str(tmp_path / "log"), delay=0.02), tmp_path / "c", block_bytes=1 << 20)  # one block
    lines = capfd.readouterr().err.splitlines()[2:-1]
    assert len(lines) >= 3
    far = [int(line.split()[0]) for line in lines]
    assert far == sorted(set(far))
    assert all(re.search(r" samples/s, [\d.]+ s left$", line) for line in lines)


def test_nothing_is_said_where_nothing_is_wanted_or_there_is_no_standard_error(tmp_path, capfd, monkeypatch):
    build(factory(80), tmp_path / "a", progress=False)
    build(factory(80), tmp_path / "b", progress=False, num_workers=1)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    build(factory(80), tmp_path / "c")


def test_a_name_of_a_column_cannot_steer_the_terminal(tmp_path, capfd):
    build(Made(30, lambda i: {"\x1b[31mred": i}), tmp_path / "c")
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_a_terminal_is_shown_how_far_the_build_is_unless_it_is_not_wanted(progress, shown, tmp_path, monkeypatch):
    screen, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        build(factory(300), tmp_path / "c", progress=progress)
        monkeypatch.undo()
        terminal.write("END")
        terminal.flush()
        seen = b""
        while b"END" not in seen:
            seen += os.read(screen, 1 << 16)
    os.close(screen)
    for word in (b"300 samples in 1 shard, about", b"300/300", b"samples/s", b"MB", b"ratio"):
        assert (word in seen) == shown


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_program_gets_plain_values_and_the_last_of_them_are_those_of_the_cache(num_workers, tmp_path, many_shards):
    events: list[dict[str, Any]] = []
    cache = build(factory(300), tmp_path / "c", progress=events.append, num_workers=num_workers)
    json.dumps(events, allow_nan=False)
    assert events[0]["event"] == "estimate"
    assert {event["event"] for event in events[1:]} == {"progress"}
    info, last = cache.info(), events[-1]
    assert (last["samples_done"], last["samples"]) == (300, 300)
    assert (last["raw_bytes"], last["stored_bytes"]) == (info["raw_bytes"], info["stored_bytes"])
    assert last["seconds_left"] == 0
    assert events[0]["samples"] == 300
    assert events[0]["shards"] == info["shards"]


def test_samples_of_a_shard_whose_worker_died_count_once(tmp_path, many_shards, monkeypatch):
    monkeypatch.setattr("shardcache.builder.progress._EVENT_SECONDS", 0.0)
    events: list[dict[str, Any]] = []
    monkeypatch.setenv("SHARDCACHE_TEST_PARENT", str(os.getpid()))
    dataset = Traced(500, str(tmp_path / "log"), deadly=321, flag=str(tmp_path / "flag"))
    cache = build(dataset, tmp_path / "c", progress=events.append, num_workers=2)
    assert (tmp_path / "flag").exists()
    done = [event["samples_done"] for event in events[1:]]
    assert max(done) == done[-1] == 500
    assert events[-1]["raw_bytes"] == cache.info()["raw_bytes"]


def test_what_an_interrupted_build_had_done_is_counted_but_not_in_the_rate(tmp_path, many_shards):
    dataset = Made(400, lambda index: np.random.default_rng(index).bytes(20_000))
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        with pytest.raises(StorageError):
            build(dataset, disk / "c", codec="none", progress=False, force=True)
        shutil.copytree(disk / "c.partial", tmp_path / "c.partial")
    events: list[dict[str, Any]] = []
    build(dataset, tmp_path / "c", codec="none", progress=events.append)
    first, last = events[1], events[-1]
    assert first["samples_done"] > 0
    assert last["samples_done"] == 400
    assert last["samples_per_second"] * last["seconds"] < 400


class Ear:
    every = 0.0

    def __init__(self) -> None:
        self.heard: list[State] = []

    def expect(self, *_: Any) -> None: ...

    def update(self, state: State) -> None:
        self.heard.append(state)

    end = update


def test_rate_and_time_left_are_of_what_was_done_now():
    ear = Ear()
    with Progress(1000, ear, [Report(0, 400, 8000, 4000)]) as report:
        time.sleep(0.1)
        report(Report(1, 100, 2000, 1000))
        report(Report(1, 300, 6000, 3000))
        report(Report(1, 50, 1000, 500))  # anew
    assert [state.samples_done for state in ear.heard] == [500, 700, 450, 450]
    last = ear.heard[-1]
    assert (last.raw_bytes, last.stored_bytes) == (9000, 4500)
    assert last.samples_per_second == pytest.approx(50 / last.seconds, rel=0.1)
    assert last.seconds_left == pytest.approx(550 * last.seconds / 50, rel=0.1)


def test_progress_is_true_false_or_a_callable(tmp_path):
    with pytest.raises(UsageError, match="progress must be True, False or a callable that gets events, was 'bar'"):
        build(factory(80), tmp_path / "c", progress="bar")
