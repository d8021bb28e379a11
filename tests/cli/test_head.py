"""shardcache head."""

import dataclasses
import json
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardcache
from shardcache.cli import samples
from tests.cli.conftest import Process, Run, error_of

Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Box:
    corner: Point
    kind: str


def test_the_first_samples_of_the_dataset_are_shown_in_its_order(process: Process, cache: Path):
    done = process("head", cache, "-n", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "sample 0",
        "  image: tensor uint8 [3, 4, 5]  min 0  max 0  mean 0  0, 0, 0, 0, 0, 0, ...",
        "  label: 0",
        r"  text:  'text 0 with [red]markup[/red] and \x1b[31mcodes\n'",
        "  wave:  array float32 [10]  min -1  max 1  mean 0  -1, -0.7778, -0.5556, -0.3333, -0.1111, 0.1111, ...",
        "  maybe: 0.5",
        "  boxes: []",
        f"  data:  {(bytes([0]) + bytes(range(23)))!r}... (5.0 kB)",
        "sample 1",
        "  image: tensor uint8 [3, 4, 5]  min 1  max 1  mean 1  1, 1, 1, 1, 1, 1, ...",
        "  label: 1",
        r"  text:  'text 1 with [red]markup[/red] and \x1b[31mcodes\ntext 1 with [red]markup[/re'... (180 characters)",
        "  wave:  array float32 [11]  min -1  max 1  mean 0  -1, -0.8, -0.6, -0.4, -0.2, 0, ...",
        "  maybe: None",
        "  boxes: [{'at': (1, 1), 'kind': 'cat'}]",
        f"  data:  {(bytes([1]) + bytes(range(23)))!r}... (5.0 kB)",
    ]


def test_it_shows_three_unless_told_and_never_more_than_there_are(run: Run, cache: Path):
    assert run("head", cache).stdout.count("sample ") == 3
    assert run("head", cache, "-n", "99").stdout.count("sample ") == 12


def test_samples_can_be_asked_for_by_index(run: Run, cache: Path):
    result = run("head", cache, "--index", "-1", "--index", "4", "--index", "4")
    heads = [line for line in result.stdout.splitlines() if line.startswith("sample")]
    assert heads == ["sample 11", "sample 4", "sample 4"]
    assert [line for line in result.stdout.splitlines() if "label" in line] == [
        "  label: 11",
        "  label: 4",
        "  label: 4",
    ]


@pytest.mark.parametrize("index", [12, -13, 10**30])
def test_an_index_beyond_the_end_is_one_line_and_exit_code_2(run: Run, cache: Path, index: int):
    result = run("head", cache, "--index", index)
    assert result.exit_code == 2
    assert error_of(result) == f"--index {index} is out of range: the cache has 12 samples"


def test_json_describes_what_json_cannot_hold(process: Process, cache: Path):
    done = process("head", cache, "-n", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = json.loads(done.stdout)
    assert (first["index"], second["index"]) == (0, 1)
    sample = second["sample"]
    assert sample["image"] == {
        "type": "tensor",
        "dtype": "uint8",
        "shape": [3, 4, 5],
        "min": 1,
        "max": 1,
        "mean": 1.0,
        "first": [1] * 6,
    }
    assert sample["text"] == "text 1 with [red]markup[/red] and \x1b[31mcodes\n" * 4
    assert sample["boxes"] == [{"at": [1, 1], "kind": "cat"}]
    assert sample["maybe"] is None
    assert sample["data"]["length"] == 5001
    assert sample["data"]["whole"] is False


def test_a_damaged_block_is_one_line_and_exit_code_6(run: Run, tmp_path: Path):
    shardcache.build([bytes([k]) * 100_000 for k in range(4)], tmp_path / "cache", codec="none", progress=False)
    shard = tmp_path / "cache" / "shard-00000.lmdb"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\2" * 1000)] ^= 1
    shard.write_bytes(data)
    result = run("head", tmp_path / "cache")
    assert result.exit_code == 6
    assert "stored checksum" in error_of(result)


VALUES: list[tuple[Any, str]] = [
    (None, "None"),
    (True, "True"),
    (-3, "-3"),
    (10**6000, "an int of 19,932 bits"),
    (0.1, "0.1"),
    (float("nan"), "nan"),
    ("", "''"),
    ("\udc80", r"'\udc80'"),
    ("x" * 100, f"'{'x' * 72}'... (100 characters)"),
    (b"\xff", r"b'\xff'"),
    (torch.tensor(7), "tensor int64 []  7"),
    (torch.zeros(0, 3), "tensor float32 [0, 3]"),
    (
        torch.tensor([1.5, float("nan"), -2.0]),
        "tensor float32 [3]  min -2  max 1.5  mean -0.25  not finite 1  1.5, nan, -2",
    ),
    (torch.tensor([float("inf")] * 2), "tensor float32 [2]  not finite 2  inf, inf"),
    (torch.tensor([1, 2], dtype=torch.bfloat16), "tensor bfloat16 [2]  min 1  max 2  mean 1.5  1, 2"),
    (torch.tensor([1, 2]).to(torch.float8_e5m2), "tensor float8_e5m2 [2]  min 1  max 2  mean 1.5  1, 2"),
    (torch.tensor([True, False, True]), "tensor bool [3]  true 2  True, False, True"),
    (torch.tensor([1 + 2j, 3j]), "tensor complex64 [2]  (1+2j), 3j"),
    (torch.tensor([1, 2], dtype=torch.uint16), "tensor uint16 [2]  min 1  max 2  mean 1.5  1, 2"),
    (np.float32(1.5), "scalar float32  1.5"),
    (np.array([1, 2], ">i4"), "array >i4 [2]  min 1  max 2  mean 1.5  1, 2"),
    (np.array(["a\x1b", "b"]), r"array <U2 [2]  'a\x1b', 'b'"),
    (np.array(["2020-01-02"], "M8[D]"), "array datetime64[D] [1]  2020-01-02"),
    ((), "()"),
    ({}, "{}"),
    ((1, "a"), "(1, 'a')"),
    (list(range(100)), "list of 100  0, 1, 2, 3, 4, 5, ..."),
]


@pytest.mark.parametrize(("value", "said"), VALUES, ids=[said[:30] for _, said in VALUES])
def test_a_value_is_one_line_that_says_what_it_is_recognised_by(value: Any, said: str):
    assert list(samples.lines(value)) == [f"  {said}"]
    assert json.dumps(samples.as_json(value), allow_nan=False)


def test_an_image_is_its_mode_and_size(run: Run, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    shardcache.build([(image.new("RGBA", (32, 20)), k) for k in range(3)], tmp_path / "cache", progress=False)
    assert "  0: image RGBA 32x20\n  1: 0\n" in run("head", tmp_path / "cache").stdout
    first = json.loads(run("head", tmp_path / "cache", "--json").stdout)[0]["sample"][0]
    assert first == {"type": "image", "mode": "RGBA", "size": [32, 20]}


def test_nested_values_are_indented_and_long_lists_are_cut():
    sample = {
        "box": Box(Point(torch.tensor(1), torch.tensor(2)), "cat"),
        "many": [torch.tensor(k) for k in range(30)],
        "ordered": OrderedDict(a=torch.tensor(1)),
        3: [],
    }
    assert list(samples.lines(sample)) == [
        "  box:     Box",
        "    corner: Point",
        "      x: tensor int64 []  1",
        "      y: tensor int64 []  2",
        "    kind:   'cat'",
        "  many:    list of 30",
        *(f"    {k}: tensor int64 []  {k}" for k in range(10)),
        "    ... and 20 more",
        "  ordered: OrderedDict of 1".replace("OrderedDict", "dict"),
        "    a: tensor int64 []  1",
        "  3:       []",
    ]
    assert samples.as_json(sample)["box"]["kind"] == "cat"


def test_what_nests_very_deep_is_cut():
    value: Any = torch.zeros(2)
    for _ in range(60):
        value = {"inner": value}
    lines = list(samples.lines(value))
    assert len(lines) < 12
    assert lines[-1].strip() == "..."
