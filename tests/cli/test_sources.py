"""``shardcache build --from``."""

import tarfile
from pathlib import Path

import pytest

import shardcache
from tests.cli.conftest import Process, Run, error_of


def test_a_kind_with_patterns_and_arguments_of_its_class(folder: Path, run: Run):
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"{name}1\n{name}2\n{name}3\n")
    result = run("build", "--from", "lines", "{a,b}.txt", "c.*", "--arg", "lines=2", "--out", "made", "-j", 2)
    assert result.exit_code == 0, result.stderr
    texts = [sample["text"] for sample in shardcache.open(folder / "made")]
    assert texts == ["a1\na2", "a3", "b1\nb2", "b3", "c1\nc2", "c3"]


def test_a_folder_of_images(folder: Path, process: Process):
    for name in ("cat/1.png", "dog/2.png"):
        (folder / "photos" / name).parent.mkdir(parents=True)
        (folder / "photos" / name).write_bytes(name.encode())
    done = process("build", "--from", "imagefolder", "photos", "--out", "made", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert shardcache.open(folder / "made")[1] == {"image": b"dog/2.png", "label": 1, "class": "dog"}


def test_parquet_is_built_in_its_own_order_unless_told_otherwise(folder: Path, run: Run):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": range(9)}), folder / "a.parquet")
    result = run("build", "--from", "parquet", "*.parquet", "--out", "made")
    assert result.exit_code == 0, result.stderr
    assert "--layout source: parquet is slow to read at random" in result.stderr
    assert shardcache.open(folder / "made").info()["layout"] == "source"
    assert run("build", "--from", "parquet", "*.parquet", "--out", "other", "--layout", "shuffled").exit_code == 0
    assert shardcache.open(folder / "other").info()["layout"] == "shuffled"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", "files", "*.wav"], 3, "no file matches '*.wav'"),
        (["--from", "imagefolder", "a", "b"], 2, "--from imagefolder: ImageFolder(root"),
        (["--from", "lines", "a", "--arg", "line=2"], 2, "got an unexpected keyword argument 'line'"),
        (["--from", "zip", "a"], 2, "'zip' is not one of 'imagefolder', 'files'"),
        (["one:a", "two:b"], 2, "one TARGET is needed, were 2: several are for --from"),
    ],
)
def test_what_cannot_be_a_source_is_one_line(folder: Path, run: Run, arguments: list[str], code: int, message: str):
    result = run("build", *arguments, "--out", "made")
    assert result.exit_code == code
    assert message in error_of(result)


def test_what_can_only_be_iterated_is_built_from_the_command_line(folder: Path, run: Run):
    (folder / "streams_here.py").write_text("def count(n):\n    yield from range(n)\n")
    result = run("build", "streams_here.py:count", "--arg", "n=300", "--shuffle-window", "50", "--out", "made")
    assert result.exit_code == 0, result.stderr
    assert shardcache.open("made")[:] == list(range(300))
    assert "shuffled in windows of 50 (seed 0)" in run("info", "made").stdout
    again = run("build", "streams_here.py:count", "--arg", "n=4", "--out", "again", "-j", "2")
    assert (again.exit_code, "read by one process" in again.stderr) == (2, True)


def test_compressed_tars_are_read_in_one_pass(folder: Path, run: Run):
    (folder / "streams.txt").write_text("text")
    with tarfile.open("a.tar.gz", "w:gz") as tar:
        tar.add("streams.txt")
    result = run("build", "--from", "webdataset", "*.tar.gz", "--out", "made")
    assert result.exit_code == 0, result.stderr
    assert "the tars are compressed, so they are read in one pass" in result.stderr
    assert shardcache.open("made")[0] == {"__key__": "streams", "txt": b"text"}
