"""shardcache verify."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shardcache
from tests.cli.conftest import ROOT, Process, Run, error_of


@pytest.fixture
def damaged(cache: Path, tmp_path: Path) -> Path:
    """A cache with one flipped bit in a value, in one that is large enough to lie outside of LMDB's tree."""
    copy = Path(shutil.copytree(cache, tmp_path / "damaged"))
    shard = copy / "shard-00000.lmdb"
    data = bytearray(shard.read_bytes())
    data[data.index(bytes(range(200)) + bytes([200]))] ^= 4
    shard.write_bytes(data)
    return copy


def test_a_sound_cache_is_one_line_and_exit_code_0(process: Process, cache: Path):
    done = process("verify", cache)
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where there is no terminal
    assert done.stdout.startswith(f"{cache}: all is as it was written: 12 samples in 1 shard, ")
    assert done.stdout.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_in_a_terminal_progress_is_shown_beside_the_result(cache: Path):
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "shardcache", "verify", str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    shown = b""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=end, text=True) as child:
        os.close(end)
        with contextlib.suppress(OSError):  # what Linux says at the end
            while chunk := os.read(terminal, 1 << 16):
                shown += chunk
        stdout, _ = child.communicate(timeout=60)
    os.close(terminal)
    assert b"verifying" in shown
    assert b"12/12" in shown
    assert stdout.startswith(f"{cache}: all is as it was written")


def test_damage_is_listed_with_its_consequence_and_exit_code_6(process: Process, damaged: Path):
    done = process("verify", damaged)
    assert (done.returncode, done.stderr) == (6, "")
    first, second, last = done.stdout.splitlines()
    assert first.startswith("shard-00000.lmdb: shard 00000, block ")
    assert "column 'data': stored checksum" in first
    assert second.startswith("    ")
    assert "column 'data' lost: row" in second
    assert last.startswith(f"{damaged}: damaged: 1 problem in 1 file; ")
    assert last.endswith("of 12 samples lost in whole or in part")


@pytest.mark.parametrize("options", [[], ["-j", "1"], ["--num-workers", "3"]])
def test_json_says_the_same_as_values(run: Run, damaged: Path, options: list[str]):
    result = run("verify", damaged, "--json", *options)
    assert (result.exit_code, result.stderr) == (6, "")
    report = json.loads(result.stdout)
    assert report["ok"] is False
    (problem,) = report["problems"]
    assert (problem["file"], problem["column"], problem["kind"]) == ("shard-00000.lmdb", "data", "DamagedBlockError")
    start, stop = problem["rows"]
    assert report["samples_lost"] == stop - start == len(problem["source_indices"])


def test_json_of_a_sound_cache_is_ok(run: Run, cache: Path):
    result = run("verify", cache, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True


def test_quiet_leaves_the_exit_code_alone(run: Run, cache: Path, damaged: Path):
    assert [(one.exit_code, one.output) for one in (run("verify", cache, "-q"), run("verify", damaged, "--quiet"))] == [
        (0, ""),
        (6, ""),
    ]


def test_a_missing_shard_and_a_strange_file_are_both_named(run: Run, damaged: Path):
    (damaged / "shard-00000.lmdb").rename(damaged / "shard-00000 (copy).lmdb")
    result = run("verify", damaged)
    assert result.exit_code == 6
    assert "which does not exist" in result.stdout
    assert "    12 samples lost: rows 0 to 11" in result.stdout
    assert "note: shard-00000 (copy).lmdb: is not a part of the cache" in result.stdout


def test_a_damaged_manifest_is_damage(run: Run, damaged: Path):
    (damaged / "manifest.json").write_text("{")
    result = run("verify", damaged)
    assert result.exit_code == 6
    assert result.stdout.splitlines()[-1] == f"{damaged}: damaged: the manifest cannot be read"
    assert json.loads(run("verify", damaged, "--json").stdout)["samples"] is None


def test_of_very_many_problems_the_first_are_shown(run: Run, tmp_path: Path):
    path = tmp_path / "cache"
    shardcache.build([bytes([k + 1]) * 3000 for k in range(120)], path, codec="none", block_bytes=3000, progress=False)
    shard = path / "shard-00000.lmdb"
    data = bytearray(shard.read_bytes())
    for k in range(120):
        data[data.index(bytes([k + 1]) * 2000)] ^= 0xFF
    shard.write_bytes(data)
    lines = run("verify", path).stdout.splitlines()
    assert lines[-2] == "... and 70 more problems (--json lists all)"
    assert len(lines) == 2 * 50 + 2
    assert len(json.loads(run("verify", path, "--json").stdout)["problems"]) == 120


def test_a_wrong_number_of_threads_is_refused(run: Run, cache: Path):
    result = run("verify", cache, "-j", "-2")
    assert result.exit_code == 2
    assert error_of(result) == "num_workers must be 0 or more, was -2"
