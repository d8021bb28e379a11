"""What the tests of the command line share: a cache to look at, datasets to build, and two ways to run a command."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import shardcache
from shardcache.cli import main

ROOT = Path(__file__).parents[2]

Run = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]

DATASETS = """
import os
import sys

class Numbers:
    def __init__(self, size=20, scale=1, name="x", **more):
        self.size, self.scale, self.name, self.more = size, scale, name, more

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"number": index * self.scale, "name": f"{self.name}{index}", "more": repr(self.more)}

class Failing(Numbers):
    def __getitem__(self, index):
        if index == 7:
            raise KeyError(f"no\\nfile {index}")
        return index

class Noisy(Numbers):
    def __getitem__(self, index):
        print("from Python")
        os.write(1, b"from a library in C\\n")
        return index

class Storing(Numbers):
    def __getitem__(self, index):
        return {"number": index, "thing": object()}

print("noise of an import")
ready = Numbers(5)
not_callable = 7

def leaves():
    sys.exit(0)

def fails(**arguments):
    raise RuntimeError("cannot be opened")
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 samples of every kind that looks different in a terminal. Not to be changed."""
    samples = [
        {
            "image": torch.full((3, 4, 5), index, dtype=torch.uint8),
            "label": index,
            "text": f"text {index} with [red]markup[/red] and \x1b[31mcodes\n" * (1 + 3 * (index % 2)),
            "wave": np.linspace(-1, 1, 10 + index, dtype=np.float32),
            "maybe": None if index % 3 else 0.5,
            "boxes": [{"at": (index, 1), "kind": "cat"}] * (index % 3),
            "data": bytes([index]) + bytes(range(250)) * 20,
        }
        for index in range(12)
    ]
    path = tmp_path_factory.mktemp("cli") / "cache"
    shardcache.build(samples, path, codec={"data": "none"}, progress=False)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module and a package of datasets in it."""
    (tmp_path / "datasets_here.py").write_text(DATASETS)
    package = tmp_path / "package_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "data.py").write_text(DATASETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("datasets_here", "package_here", "package_here.data"):
        sys.modules.pop(name, None)


@pytest.fixture
def run() -> Run:
    """Run a command in this process: ``run("info", path)``."""

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return invoke


@pytest.fixture
def process() -> Process:
    """Run ``python -m shardcache`` as a process of its own."""

    def start(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shardcache", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)

    return start


def error_of(result: Result | subprocess.CompletedProcess[str]) -> str:
    """The one line that an error must be, without its head."""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return last.removeprefix("error: ")
