"""shardcache info."""

import json
import shutil
from pathlib import Path

import pytest

import shardcache
from tests.cli.conftest import Process, Run, error_of


def test_it_names_each_column_with_what_it_holds_and_how_it_is_stored(run: Run, cache: Path):
    result = run("info", cache)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{cache}: 12 samples, ")
    assert lines[0].endswith("shuffled (seed 0)")
    assert "1 shard" in lines[1]
    assert lines[3].startswith("built ")
    assert lines[5].split() == ["column", "holds", "batch", "bytes", "ratio", "codec", "why"]
    rows = {line.split()[0]: line for line in lines[6:]}
    assert list(rows) == ["image", "label", "text", "wave", "maybe", "boxes", "data"]
    assert "tensor uint8 [3, 4, 5]  tensor" in rows["image"]  # brackets are no markup
    assert "array f4 [?]" in rows["wave"]
    assert " ragged " in rows["wave"]
    assert "float or None" in rows["maybe"]
    for field in shardcache.open(cache).schema:
        assert f"  {field.codec} " in rows[field.name]
        assert rows[field.name].endswith(field.why)


def test_json_holds_everything_as_values(process: Process, cache: Path):
    done = process("info", cache, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    info = json.loads(done.stdout)
    assert {key: value for key, value in info.items() if key != "columns"} == {
        key: value for key, value in shardcache.open(cache).info().items() if key != "columns"
    }
    image, wave = info["columns"][0], info["columns"][3]
    assert (image["name"], image["dtype"], image["shape"], image["batch"]) == ("image", "uint8", [3, 4, 5], "tensor")
    assert (wave["shape"], wave["optional"]) == ([None], False)
    assert {"codec", "why", "raw_bytes", "stored_bytes"} <= set(image)


def test_the_digest_alone_is_for_scripts(run: Run, cache: Path):
    assert run("info", cache, "--digest").stdout == shardcache.open(cache).info()["digest"] + "\n"


def test_in_a_pipe_a_row_is_a_line_however_long_it_is(run: Run, tmp_path: Path):
    name = "deeply/nested".replace("/", "_") * 12
    shardcache.build([{name: k, "[red]x[/red]": "ä"} for k in range(20)], tmp_path / "cache", progress=False)
    lines = run("info", tmp_path / "cache").stdout.splitlines()
    assert len(lines) == 5 + 3
    assert name in lines[6]
    assert lines[7].startswith("[red]x[~1red] ")
    assert not any(line.endswith(" ") for line in lines)


def test_a_name_that_could_steer_the_terminal_is_escaped(run: Run, tmp_path: Path):
    shardcache.build([{"a\x1b[31m\nb": k} for k in range(20)], tmp_path / "cache", progress=False)
    output = run("info", tmp_path / "cache").stdout
    assert "a\\x1b[31m\\nb" in output
    assert "\x1b" not in output


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other", "version": 1}'])
def test_a_manifest_that_is_none_is_one_line_and_exit_code_5(run: Run, tmp_path: Path, text: str):
    (tmp_path / "manifest.json").write_text(text)
    result = run("info", tmp_path)
    assert result.exit_code == 5
    assert "manifest.json" in error_of(result)


def test_it_reads_the_manifest_alone(run: Run, cache: Path, tmp_path: Path):
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    for shard in copy.glob("shard-*"):
        shard.unlink()
    assert run("info", copy).exit_code == 0
