"""The README is true: every block of Python and every `shardcache` command in it runs, in order, in one folder.

A line of Python that ends in `# -> text` is an expression whose repr must be that text. A block that starts with
`# name.py` is a file of the user's.
"""

import ast
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import shardcache

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LANGUAGES = {"python", "sh", "console"}  # console: what a test cannot run


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of the README, at which the text starts
    text: str

    def __str__(self) -> str:
        return f"README.md:{self.line}"


def blocks() -> list[Block]:
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [Block(f[1], README.count("\n", 0, f.start(2)) + 1, f[2]) for f in fences]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder: photos in folders by class, and texts; forked workers, which find what a block defines."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for number in range(24):
        photo = tmp_path / "photos" / "abc"[number % 3] / f"{number:02}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(40, 120, 2)
        image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(photo)
    (tmp_path / "texts").mkdir()
    for number in range(200):
        (tmp_path / "texts" / f"{number:03}.txt").write_bytes(
            rng.integers(32, 127, rng.integers(1, 400), np.uint8).tobytes()
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    yield tmp_path
    multiprocessing.set_start_method(before, force=True)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the blocks' functions are not in a module that can be imported")
def test_every_block_of_python_and_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # so that its classes can be pickled
    ran = set()
    for block in blocks():
        assert block.language in LANGUAGES, f"{block}: a block of {block.language!r}"
        if block.language == "python":
            run_python(block, module)
        elif block.language == "sh":
            run_commands(block)
        else:
            assert "$ shardcache" not in block.text, f"{block}: a command that is not run"
        ran.add(block.language)
    assert ran == LANGUAGES


def run_python(block: Block, module: types.ModuleType) -> None:
    name = re.match(r"# (\w+\.py)\n", block.text)
    if name is not None:
        Path(name[1]).write_text(block.text, encoding="utf-8")
        return
    lines = block.text.splitlines()
    for node in ast.parse(block.text).body:
        last = lines[(node.end_lineno or node.lineno) - 1]
        expected = re.search(r"  ?# -> (.*)", last)
        where = f"README.md:{block.line + node.lineno - 1}"
        assert expected is None or isinstance(node, ast.Expr), f"{where}: only an expression has a value"
        ast.increment_lineno(node, block.line - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what other libraries say to each other
            warnings.simplefilter("error", shardcache.ShardCacheWarning)
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), str(ROOT / "README.md"), "eval"), vars(module))
            else:
                exec(compile(ast.Module([node], []), str(ROOT / "README.md"), "exec"), vars(module))
        if expected is not None:
            assert repr(value) == expected[1], where


def run_commands(block: Block) -> None:
    for number, line in enumerate(block.text.splitlines()):
        command, *arguments = shlex.split(line, comments=True)
        where = f"README.md:{block.line + number}: {line}"
        assert command == "shardcache", where
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "shardcache", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{where}\n{done.stderr}"


def test_links_to_files_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_table_of_batches_is_what_batches_hold(tmp_path: Path):
    """Each row of the table, by the schema and by a batch."""
    import torch
    from PIL import Image

    import shardcache

    class Everything:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> dict[str, object]:
            few = index % 4
            sample = {
                "tensor": torch.zeros(2, 3, dtype=torch.bfloat16),
                "array": np.zeros((4, 1), ">u2"),
                "scalar": np.float32(index),
                "int": index,
                "float": index / 2,
                "bool": index > 3,
                "shapes": torch.zeros(few, 2),
                "arrays": np.zeros(few, np.int16),
                "padded": torch.zeros(few, 2),
                "str": "s" * index,
                "bytes": b"b" * index,
                "image": Image.new("L", (index + 1, 2)),
                "optional": None if few else np.zeros(3),
                "boxes": [[1.0, 2.0]] * few,
                "annotation": {f"key {index}": [{"x": 1}] * few},
                "long": list(range(33)),
                "mixed": torch.zeros(2) if few else torch.zeros(2, dtype=torch.int32),
                "big": 1 << 63 if index == 5 else index,
                "text": np.array(["ab", "c"]),
                "list": [1, 2.0],
                "tuple": (index, "s"),
            }
            return sample if few else {**sample, "sometimes": 1}

    cache = shardcache.build(Everything(), tmp_path / "cache", progress=False)
    collate = {"padded": "pad", "shapes": "list", "arrays": "list"}
    ds = shardcache.CachedDataset(cache, batch_size=8, order="stored", with_meta=True, collate=collate)
    batch, meta = next(iter(ds))
    columns = {field.name for field in cache.schema}

    def tensor(name: str, dtype: torch.dtype, *shape: int) -> None:
        assert isinstance(batch[name], torch.Tensor), name
        assert (batch[name].dtype, tuple(batch[name].shape)) == (dtype, (8, *shape)), name

    def listed(name: str, kinds: set[type]) -> None:
        assert type(batch[name]) is list, name
        assert len(batch[name]) == 8, name
        assert {type(value) for value in batch[name]} <= kinds, name
        if name in columns:
            assert cache.schema[name].batch in ("list", "ragged")

    tensor("tensor", torch.bfloat16, 2, 3)
    tensor("array", torch.uint16, 4, 1)
    tensor("scalar", torch.float32)
    tensor("int", torch.int64)
    tensor("float", torch.float64)
    tensor("bool", torch.bool)
    listed("shapes", {torch.Tensor})
    listed("arrays", {torch.Tensor})
    padded = batch["padded"]
    assert isinstance(padded, shardcache.Padded)
    assert padded.data.shape == (8, max(padded.lengths[:, 0].tolist()), 2)
    assert padded.lengths.shape == (8, 2)
    listed("str", {str})
    listed("bytes", {bytes})
    listed("image", {Image.Image})
    listed("optional", {np.ndarray, type(None)})
    listed("sometimes", {int, type(None)})
    listed("boxes", {list})
    listed("annotation", {dict})
    listed("long", {list})
    listed("mixed", {torch.Tensor})
    listed("big", {int})
    listed("text", {np.ndarray})
    assert type(batch["list"]) is list
    assert [part.dtype for part in batch["list"]] == [torch.int64, torch.float64]
    assert type(batch["tuple"]) is tuple
    assert batch["tuple"][0].dtype == torch.int64
    assert batch["int"].tolist() == meta.index.tolist()
