"""shardcache build."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

import shardcache
from shardcache.format import spec
from tests.builder.conftest import digests
from tests.cli.conftest import Process, Run, error_of
from tests.format.test_shard import small_disk


@pytest.mark.parametrize(("target", "workers"), [("package_here.data:Numbers", 2), ("datasets_here.py:Numbers", 0)])
def test_a_process_builds_from_the_current_folder_and_says_what_it_made(
    folder: Path, process: Process, target: str, workers: int
):
    arguments = ("--arg", "size=30", "--arg", "name=wörd", "--num-workers", workers)
    done = process("build", target, "--out", "made", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    cache = shardcache.open(folder / "made")
    assert cache[29] == {"number": 29, "name": "wörd29", "more": "{}"}
    size = sum(seal.file_bytes for seal in cache.manifest.shards) / 1000
    assert done.stdout.startswith(f"made: 30 samples in 1 shard, {size:.1f} kB for ")
    assert " (ratio 0." in done.stdout
    assert "built in " in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith("--arg size: 30 (int)\n--arg name: 'wörd' (str)\nnoise of an import\n")


@pytest.mark.parametrize("target", ["datasets_here:Numbers", "package_here/data.py:Numbers"])
def test_a_module_or_a_file_of_the_current_folder_is_found(folder: Path, run: Run, target: str):
    result = run("build", target, "--out", "made")
    assert result.exit_code == 0, result.stderr
    assert len(shardcache.open(folder / "made")) == 20


def test_bad_samples_are_left_out_listed_and_counted(folder: Path, run: Run):
    result = run("build", "datasets_here:Failing", "--out", "made", "--on-error", "skip", "--max-errors", "1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("made: 19 samples (1 skipped) in 1 shard")
    info = run("info", "made").stdout
    assert info.startswith("made: 19 samples (1 skipped), ")
    assert "'shardcache info made --skipped' lists the samples that the build skipped, and why" in info
    assert run("info", "made", "--skipped").stdout.split() == "index error message 7 KeyError 'no\\nfile 7'".split()
    listed = [{"index": 7, "error": "KeyError", "message": "'no\\nfile 7'"}]
    assert json.loads(run("info", "made", "--skipped", "--json").stdout) == listed
    assert json.loads(run("info", "made", "--json").stdout)["skipped"] == 1
    again = ["build", "datasets_here:Failing", "--out", "again", "--on-error", "skip", "--max-errors"]
    assert "max_errors allows 0: sample 7: KeyError" in error_of(run(*again, "0"))


def test_a_dataset_that_exists_already_needs_no_call(folder: Path, run: Run):
    assert run("build", "datasets_here:ready", "--out", "made").exit_code == 0
    assert len(shardcache.open(folder / "made")) == 5


def test_arguments_are_json_and_what_is_not_json_is_text(folder: Path, run: Run):
    given = {
        "size": ("7", 7, "7 (int)"),
        "scale": ("2.5", 2.5, "2.5 (float)"),
        "name": ('"12"', "12", "'12' (str)"),
        "root": ("/data/a=b", "/data/a=b", "'/data/a=b' (str)"),
        "flag": ("true", True, "True (bool)"),
        "nothing": ("null", None, "None (NoneType)"),
        "sizes": ("[1, 2]", [1, 2], "[1, 2] (list)"),
        "more": ('{"a": {"b": 1}}', {"a": {"b": 1}}, "{'a': {'b': 1}} (dict)"),
        "empty": ("", "", "'' (str)"),
        "zeros": ("007", "007", "'007' (str)"),
    }
    arguments = [part for name, (text, _, _) in given.items() for part in ("--arg", f"{name}={text}")]
    result = run("build", "datasets_here:Numbers", "--out", "made", *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[:10] == [f"--arg {name}: {said}" for name, (_, _, said) in given.items()]
    cache = shardcache.open(folder / "made")
    assert len(cache) == 7
    assert cache[2]["number"] == 5.0
    assert cache[2]["name"] == "122"
    rest = {name: value for name, (_, value, _) in given.items() if name not in ("size", "scale", "name")}
    assert cache[0]["more"] == repr(rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arg", "size"], "--arg must be NAME=VALUE, was 'size'"),
        (["--arg", "=3"], "--arg must be NAME=VALUE, was '=3'"),
        (["--arg", "size=3", "--arg", "size=4"], "--arg size was given twice"),
        (["--block-bytes", "big"], "--block-bytes must be a size like '128KiB', was 'big'"),
        (["--block-bytes", "-5"], "--block-bytes must be a size like '128KiB', was '-5'"),
        (["--block-bytes", "0"], "--block-bytes must be a size like '128KiB', was '0'"),
        (["-j", "-1"], "num_workers must be 0 or more, was -1"),
        (["--seed", str(1 << 70)], "seed must be an int of 64 bits"),
        (["--codec", "lz4"], "codec 'lz4': must be 'auto', 'none', 'lzma', 'zstd' or 'zstd:LEVEL'"),
        (["--codec", "zstd:99"], "codec 'zstd:99': must be"),
        (["--codec", "none", "--codec", "zstd"], "--codec may be given once, and once for each column; was none, zstd"),
        (["--codec", "name=none", "--codec", "name=zstd"], "--codec may be given once, and once for each column"),
        (["--codec", "none", "--codec", "name=zstd"], "--codec none is for all columns"),
        (["--codec", "nothing=none"], "codec for 'nothing': there is no such column; the columns are"),
        (["--codec", "number="], "codec '': must be"),
    ],
)
def test_an_option_that_has_no_sense_is_refused_and_nothing_is_made(
    folder: Path, run: Run, arguments: list[str], message: str
):
    result = run("build", "datasets_here:Numbers", "--out", "made", *arguments)
    assert result.exit_code == 2
    assert message in error_of(result)
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("datasets_here", 2, "must be 'package.module:callable' or 'file.py:callable'"),
        ("datasets_here:", 2, "must be 'package.module:callable' or 'file.py:callable'"),
        ("datasets_here:Nothing", 2, "datasets_here has no 'Nothing'"),
        ("not_there:Numbers", 2, "there is no module 'not_there' here"),
        ("not_there.py:Numbers", 2, "there is no file 'not_there.py'"),
        ("datasets_here:not_callable", 2, "datasets_here:not_callable"),
        ("datasets_here:fails", 3, "datasets_here:fails() raised RuntimeError: cannot be opened"),
        ("datasets_here:leaves", 3, "the code of the dataset ended the program: SystemExit(0)"),
        ("datasets_here:Failing", 3, r"dataset[7] raised KeyError: 'no\nfile 7'"),
        ("datasets_here:Storing", 3, "column 'thing': a value of type object cannot be stored"),
    ],
)
def test_a_target_that_cannot_be_built_is_one_line_that_says_why(
    folder: Path, run: Run, target: str, code: int, message: str
):
    result = run("build", target, "--out", "made")
    assert result.exit_code == code
    assert message in error_of(result)
    assert sorted(path.name for path in folder.iterdir() if "made" in path.name) == []


def test_an_error_in_a_worker_process_is_as_short_as_one_in_this(folder: Path, process: Process):
    (folder / "late.py").write_text(
        "class Late:\n"
        "    def __len__(self): return 1000\n"
        "    def __getitem__(self, index):\n"
        "        if index == 577: raise OSError('unreadable')\n"
        "        return index\n"
    )
    done = process("build", "late:Late", "--out", "made", "-j", "2", "--layout", "source", cwd=folder)
    assert done.returncode == 3
    assert error_of(done) == "dataset[577] raised OSError: unreadable"
    done = process("build", "late:Late", "--out", "made", "-j", "2", "--layout", "source", "--debug", cwd=folder)
    assert done.returncode == 3
    assert 'late.py", line 4, in __getitem__' in done.stderr


def test_what_the_dataset_prints_does_not_mix_with_the_result(folder: Path, process: Process):
    done = process("build", "datasets_here:Noisy", "--out", "made", "--json", "-j", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["estimate", "progress", "done"]
    result = events[-1]
    assert (result["samples"], result["built"]) == (20, True)
    assert Path(result["path"]) == folder / "made"
    assert result["digest"] == shardcache.open(folder / "made").info()["digest"]
    assert "from Python" in done.stderr
    assert "from a library in C" in done.stderr


def test_an_existing_cache_is_refused_opened_or_replaced(folder: Path, run: Run):
    build = ("build", "datasets_here:Numbers", "--out", "made")
    assert run(*build).exit_code == 0
    result = run(*build, "--arg", "size=9")
    assert result.exit_code == 4
    assert "a cache is here already" in error_of(result)
    result = run(*build, "--arg", "size=9", "--if-exists", "open")
    assert result.exit_code == 0
    assert result.stdout.startswith("made: 20 samples")
    assert "was there already" in result.stdout
    assert json.loads(run(*build, "--if-exists", "open", "--json").stdout)["built"] is False
    result = run(*build, "--arg", "size=9", "--if-exists", "replace")
    assert result.exit_code == 0
    assert len(shardcache.open(folder / "made")) == 9


def test_something_else_at_the_path_is_never_touched(folder: Path, run: Run):
    (folder / "made").mkdir()
    (folder / "made" / "thesis.tex").write_text("precious")
    for choice in ("error", "open", "replace"):
        result = run("build", "datasets_here:Numbers", "--out", "made", "--if-exists", choice)
        assert result.exit_code == 4
        assert "something else is here already" in error_of(result)
    assert (folder / "made" / "thesis.tex").read_text() == "precious"


def test_a_path_that_cannot_be_written_is_one_line(folder: Path, run: Run):
    (folder / "file").write_text("")
    result = run("build", "datasets_here:Numbers", "--out", "file/made")
    assert result.exit_code == 4
    assert "cannot be written" in error_of(result)


def test_the_options_reach_the_cache(folder: Path, run: Run):
    options = [
        "--layout",
        "source",
        "--seed",
        "5",
        "--block-bytes",
        "1KiB",
        "--codec",
        "name=none",
        "--codec",
        "number=zstd:9",
    ]
    result = run("build", "datasets_here:Numbers", "--out", "made", "--arg", "size=500", *options, "--no-progress")
    assert result.exit_code == 0, result.stderr
    cache = shardcache.open(folder / "made")
    assert (cache.manifest.layout, cache.manifest.seed) == ("source", 5)
    assert cache.manifest.rows_per_block < 100
    codecs = {field.name: field.codec for field in cache.schema}
    assert (codecs["name"], codecs["number"]) == ("none", "zstd:9")
    result = run("build", "datasets_here:Numbers", "--out", "plain", "--codec", "none")
    assert result.exit_code == 0
    assert {field.codec for field in shardcache.open(folder / "plain").schema} == {"none"}


def test_a_program_that_reads_events_gets_warnings_and_errors_too(folder: Path, process: Process):
    (folder / "odd.py").write_text(
        "import random\n"
        "class Sorted:\n"
        "    def __len__(self): return 400\n"
        "    def __getitem__(self, index): return index // 100\n"
        "class Random(Sorted):\n"
        "    def __getitem__(self, index): return {'label': index, 'crop': random.random()}\n"
    )
    done = process("build", "odd:Sorted", "--out", "made", "--layout", "source", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["warning", "estimate", "progress", "done"]
    assert "is sorted in the source" in events[0]["message"]
    assert "warning: column 'sample' is sorted" in done.stderr
    done = process("build", "odd:Random", "--out", "random", "--json", cwd=folder)
    assert done.returncode == 3
    (event,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (event["event"], event["type"], event["exit_code"]) == ("error", "RandomSourceError", 3)
    assert "column 'crop'" in event["message"]
    assert event["message"] in done.stderr


def test_a_random_dataset_is_refused_unless_that_is_wanted(folder: Path, run: Run):
    (folder / "odd.py").write_text(
        "import random\nmade = type('Made', (list,), {'__getitem__': lambda *_: random.random()})([0] * 50)\n"
    )
    result = run("build", "odd.py:made", "--out", "made")
    assert result.exit_code == 3
    assert "column 'sample' differed" in error_of(result)
    assert not (folder / "made").exists()
    assert run("build", "odd.py:made", "--out", "made", "--allow-random").exit_code == 0


def test_a_dry_run_says_what_a_build_would_make_and_makes_nothing(folder: Path, run: Run):
    before = sorted(folder.rglob("*"))
    result = run("build", "datasets_here:Numbers", "--out", "made", "--arg", "size=5000", "--dry-run", "-j", "2")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("5,000 samples in 1 shard, about ")
    assert lines[0].endswith(" with 2 workers")
    assert lines[1].startswith("free there: ")
    assert lines[4].split() == ["column", "holds", "bytes", "ratio", "codec", "why"]
    assert [line.split()[0] for line in lines[5:]] == ["number", "name", "more"]
    event = json.loads(run("build", "datasets_here:Numbers", "--dry-run", "--json").stdout)
    assert (event["event"], event["samples"], event["free_bytes"], event["random"]) == ("estimate", 20, None, [])
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in str(path)] == before


def test_a_disk_that_is_too_small_is_one_line_and_force_begins_all_the_same(folder: Path, run: Run):
    (folder / "large.py").write_text(
        "import random\nclass Large:\n    def __len__(self): return 300\n"
        "    def __getitem__(self, index): return random.Random(index).randbytes(20_000)\n"
    )
    with small_disk(folder / "disk", 4 << 20):
        result = run("build", "large.py:Large", "--out", "disk/made")
        assert result.exit_code == 4
        assert "are needed (with a margin of 10%)" in error_of(result)
        assert list((folder / "disk").iterdir()) == []
        result = run("build", "large.py:Large", "--out", "disk/made", "--force")
        assert result.exit_code == 4
        assert "disk full" in error_of(result)


def test_standard_output_is_as_it_was_after_a_build(folder: Path, run: Run):
    before = os.fstat(1)
    run("build", "datasets_here:Noisy", "--out", "made")
    run("build", "datasets_here:Failing", "--out", "made2")
    assert os.path.samestat(before, os.fstat(1))


def test_parts_are_built_by_commands_and_finished_by_another(folder: Path, run: Run):
    for number in (1, 2):
        done = run("build", "datasets_here.py:Numbers", "--out", "c", "--part", f"{number}/2", "-j", str(number - 1))
        assert done.exit_code == 0, done.output
    assert re.fullmatch(
        r"c: part 2/2 built in .*; 1 of 1 shard are there, 'shardcache finish' publishes\n", done.stdout
    )
    done = run("build", "datasets_here.py:Numbers", "--out", "c", "--part", "1/2", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["shards_done"] == 1
    assert not Path("c").exists()
    done = run("finish", "c")
    assert done.exit_code == 0, done.output
    assert re.match(r"c: 20 samples in 1 shard, ", done.stdout)
    assert json.loads(run("finish", "c", "--json").stdout)["samples"] == 20


def test_what_is_missing_of_parts_is_one_line(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 1000)
    command = ["build", "datasets_here.py:Numbers", "--arg", "size=400", "--out", "c", "--block-bytes", "1KiB"]
    assert run(*command, "--part", "1/2").exit_code == 0
    done = run("finish", "c")
    assert done.exit_code == 4
    assert re.search(r"error: .* shards are not there.*part 2/2 \(shards 000\d\d-000\d\d\)", done.stderr)
    assert done.stderr.count("\n") == 1
    assert run("finish", "nowhere").exit_code == 5


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--part", "3"], "--part must be K/N, as 3/16, was '3'"),
        (["--part", "3/2"], "part must be (1, n) to (n, n)"),
        (["--executor", "dask"], "--executor dask and --address URL, of its scheduler, go together"),
        (["--address", "tcp://127.0.0.1:1"], "--executor dask and --address URL, of its scheduler, go together"),
        (["--executor", "mpi"], "'mpi' is not one of 'dask', 'threads'"),
        (["--executor", "threads", "--sample-timeout", "3"], "sample_timeout= is for workers of our own"),
        (["--sample-timeout", "3"], "sample_timeout= needs num_workers=1 or more"),
        (["--max-shards-per-worker", "0", "-j", "1"], "max_shards_per_worker must be 1 or more"),
    ],
)
def test_options_of_running_that_have_no_sense_are_refused(folder: Path, run: Run, options: list[str], what: str):
    done = run("build", "datasets_here.py:Numbers", "--out", "c", *options)
    assert done.exit_code == 2
    assert what in done.stderr
    assert not list(Path().glob("c*"))


def test_threads_and_workers_with_limits_build_too(folder: Path, run: Run):
    assert run("build", "datasets_here.py:Numbers", "--out", "c", "--executor", "threads").exit_code == 0
    limits = ["-j", "2", "--sample-timeout", "60", "--max-shards-per-worker", "3"]
    assert run("build", "datasets_here.py:Numbers", "--out", "d", *limits).exit_code == 0
    assert digests(Path("c")) == digests(Path("d"))


def test_a_dask_cluster_is_used_by_the_address_of_its_scheduler(folder: Path, run: Run, process: Process):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        target = str(folder / "datasets_here.py:Numbers")
        done = process(
            "build", target, "--out", str(folder / "c"), "--executor", "dask", "--address", cluster.scheduler_address
        )
    assert done.returncode == 0, done.stderr
    assert run("build", "datasets_here.py:Numbers", "--out", "d").exit_code == 0
    assert digests(Path("c")) == digests(Path("d"))


def test_a_cluster_that_is_not_there_and_an_extra_that_is_not_installed_are_told(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    import dask

    command = [
        "build",
        "datasets_here.py:Numbers",
        "--out",
        "c",
        "--executor",
        "dask",
        "--address",
        "tcp://127.0.0.1:9",
    ]
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        done = run(*command)
    assert done.exit_code == 4
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in done.stderr
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = run(*command)
    assert done.exit_code == 2
    assert "pip install 'shardcache[dask]'" in done.stderr
