"""The shape of the package, read from its source and from what a fresh interpreter imports."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "shardcache"

# Lowest first: a module may import its own layer and those before it. FACADE is shardcache/__init__.py.
FACADE = "the names of shardcache itself"
LAYERS = "errors wording format read quality speed builder integrity registry".split()
LAYERS += [FACADE, "cli", "examples", "__main__"]

MAX_LINES = 350
FOR_DEVELOPERS = {"test", "check", "dev"}
IMPORT_NAME = {"pillow": "PIL", "scikit-learn": "sklearn"}  # where it is not the name of the distribution

EVERYWHERE = ("shardcache/",)
SCRIPTS = ("shardcache/examples/",)  # nothing imports them
DATA_PATH = (  # what handles the bytes of a cache
    "shardcache/format/",
    "shardcache/read/",
    "shardcache/integrity/report.py",
    "shardcache/integrity/verify.py",
)

RUNS_SOMETHING = (
    "builtins codeop compile cffi copyreg ctypes importlib numpy.ctypeslib numpy.load os.execv os.execve "
    "os.popen os.posix_spawn os.spawnv os.system pkgutil pty subprocess sys.meta_path sys.path torch.classes torch.hub "
    "torch.jit torch.ops torch.package torch.utils.cpp_extension types.CodeType types.FunctionType yaml zipimport"
).split()
FOLLOWS_SOMETHING = (
    "http io.open numpy.fromfile numpy.loadtxt os.chdir os.readlink os.symlink os.walk "
    "socket tarfile tempfile torch.from_file urllib zipfile"
).split()

# A module or function, the folders in which it is banned, and the files that may use it all the same.
BANNED = [
    ("lmdb", EVERYWHERE, {"shardcache/format/shard.py", "shardcache/builder/sources/key_value.py"}),
    ("zstandard", EVERYWHERE, {"shardcache/format/compression.py"}),
    # Importing by name is for the target that a user gives, and for the package's own table of public names.
    ("importlib.import_module", EVERYWHERE, {"shardcache/builder/source.py", "shardcache/__init__.py"}),
    ("importlib.util", EVERYWHERE, {"shardcache/builder/source.py"}),
    ("runpy", EVERYWHERE, {"shardcache/builder/source.py"}),
    ("__import__", EVERYWHERE, set()),
    ("eval", EVERYWHERE, set()),
    ("exec", EVERYWHERE, set()),
    ("marshal", EVERYWHERE, set()),
    ("shelve", EVERYWHERE, set()),
    ("torch.load", EVERYWHERE, {"shardcache/examples/plain_loop.py"}),  # of a checkpoint, never of a cache
    ("pickle", DATA_PATH, {"shardcache/read/messages.py"}),  # between processes, never from disk
    ("cloudpickle", DATA_PATH, set()),
    ("dill", DATA_PATH, set()),
    ("multiprocessing.reduction", DATA_PATH, {"shardcache/read/messages.py"}),
    ("PIL.Image.open", DATA_PATH, {"shardcache/read/decode.py"}),  # of formats that it lists: others run programs
    *((name, DATA_PATH, set()) for name in RUNS_SOMETHING),
    # No path comes from a cache, and nothing that is followed: who opens a file takes a name that is in the code.
    ("open", DATA_PATH, {"shardcache/format/manifest.py", "shardcache/format/files.py"}),
    (
        "os.open",
        DATA_PATH,
        {
            "shardcache/format/leases.py",
            "shardcache/format/manifest.py",
            "shardcache/format/shard.py",
            "shardcache/integrity/verify.py",
            "shardcache/format/files.py",
            "shardcache/read/hold.py",
            "shardcache/read/loans.py",  # shared memory of a process of the loader
            "shardcache/read/ring.py",
        },
    ),
    ("os.path.realpath", DATA_PATH, {"shardcache/format/mounts.py"}),  # of the path that the user gives
    ("glob", DATA_PATH, {"shardcache/read/hold.py"}),  # what stood at the user's path before
    ("shutil", DATA_PATH, {"shardcache/format/shard.py"}),  # how much room is left
    *((name, DATA_PATH, set()) for name in FOLLOWS_SOMETHING),
]


@dataclass(frozen=True)
class Import:
    line: int
    name: str  # in full: `from .spec import MAGIC` in shardcache/format/ is shardcache.format.spec.MAGIC
    at_import: bool  # it runs when the module is imported: neither in a function nor for the type checker alone


@dataclass(frozen=True)
class Module:
    name: str
    path: str  # relative to the repository, with forward slashes
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    def imports(self) -> list[Import]:
        return list(self._imports(self.tree, at_import=True))

    def _imports(self, node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(child.lineno, alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                source = importlib.util.resolve_name("." * child.level + (child.module or ""), self.package)
                yield from (Import(child.lineno, f"{source}.{alias.name}", at_import) for alias in child.names)
            else:
                deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                    isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                )
                yield from self._imports(child, at_import and not deferred)

    def names(self) -> Iterator[tuple[int, str]]:
        """Every name that is imported or used, in full: after `import numpy as np`, `np.load` is numpy.load."""
        full = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                full |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        yield from ((found.line, found.name) for found in self.imports())
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute):
                first, _, rest = ast.unparse(node).partition(".")
                yield node.lineno, f"{full.get(first, first)}.{rest}".rstrip(".")


def read_module(file: Path) -> Module:
    relative = file.relative_to(ROOT)
    text = file.read_text(encoding="utf-8")
    name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    return Module(name, relative.as_posix(), ast.parse(text), len(text.splitlines()))


MODULES = {module.name: module for module in map(read_module, sorted(PACKAGE.rglob("*.py")))}


def layer_of(name: str) -> str | None:
    """The layer that a full name belongs to; None outside the package."""
    top, *below = name.split(".")
    if top != "shardcache":
        return None
    return below[0] if below and f"shardcache.{below[0]}" in MODULES else FACADE


def module_of(name: str) -> str:
    """The longest prefix of a full name that is a module of the package."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(dict.fromkeys(problems))


def test_every_module_belongs_to_a_layer():
    report(
        [
            f"{module.path}: {layer_of(name)!r} has no place in LAYERS"
            for name, module in MODULES.items()
            if layer_of(name) not in LAYERS
        ]
    )


def test_imports_point_down_only():
    problems = []
    for name, module in MODULES.items():
        allowed = LAYERS[: LAYERS.index(layer_of(name)) + 1]
        for found in module.imports():
            layer = layer_of(found.name)
            if layer is not None and layer not in allowed:
                problems.append(
                    f"{module.path}:{found.line} imports {found.name}: "
                    f"{layer_of(name)} may import {', '.join(allowed)}, not {layer}"
                )
    report(problems)


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        name: {module_of(found.name) for found in module.imports() if found.at_import} - {"", name}
        for name, module in MODULES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@pytest.mark.parametrize(("banned", "folders", "but"), BANNED, ids=[name for name, _, _ in BANNED])
def test_a_dangerous_or_foreign_name_stays_where_it_is_tamed(banned: str, folders: tuple[str, ...], but: set[str]):
    report(
        [
            f"{module.path}:{line} uses {name}, which is for {', '.join(sorted(but)) or 'nobody'}"
            for module in MODULES.values()
            if module.path.startswith(folders) and module.path not in but
            for line, name in module.names()
            if name == banned or name.startswith(banned + ".")
        ]
    )


def test_a_module_imports_only_what_the_package_depends_on():
    """What is imported at once is a dependency; an extra is imported in the function that needs it, but in a script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    always = {import_name(requirement) for requirement in project["dependencies"]} | {"shardcache"}
    extras = {
        import_name(requirement)
        for extra, requirements in project["optional-dependencies"].items()
        if extra not in FOR_DEVELOPERS
        for requirement in requirements
    }
    problems = []
    for module in MODULES.values():
        for found in module.imports():
            top = found.name.partition(".")[0]
            is_late = not found.at_import or module.path.startswith(SCRIPTS)
            if top in sys.stdlib_module_names or top in always or (top in extras and is_late):
                continue
            why = "is an extra: import it in a function" if top in extras else "is not a dependency of the package"
            problems.append(f"{module.path}:{found.line} imports {found.name}: {top} {why}")
    report(problems)


def import_name(requirement: str) -> str:
    distribution = re.match(r"[\w-]+", requirement)[0]
    return IMPORT_NAME.get(distribution, distribution.replace("-", "_"))


def test_no_module_is_too_long_to_read_at_a_sitting():
    report(
        [
            f"{module.path} has {module.lines} lines; at most {MAX_LINES}"
            for module in MODULES.values()
            if module.lines > MAX_LINES
        ]
    )


REFUSE = """
import runpy, sys

class Refuse:
    def find_spec(name, path=None, target=None):
        if name in {names!r}:
            raise AssertionError(name + " is imported")  # no ImportError: nothing may take it for a missing extra

sys.meta_path.insert(0, Refuse)
"""


def run_without(names: tuple[str, ...], code: str) -> str:
    """The output of a fresh interpreter to which importing any of these is an error, with a traceback to the line."""
    script = REFUSE.format(names=names) + code
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_torch_nor_an_extra():
    run_without(("torch", "PIL", "pyarrow", "datasets", "dask"), "import shardcache")


def test_the_command_line_prints_its_help_without_torch():
    as_command = "sys.argv = ['shardcache', '--help']\nrunpy.run_module('shardcache', run_name='__main__')"
    assert "Usage" in run_without(("torch",), as_command)


def test_no_public_function_is_hidden_by_a_module_of_the_same_name():
    """Importing a submodule sets it as an attribute of the package, over whatever had that name."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    names = subprocess.run(
        [sys.executable, "-c", "import shardcache; print(*shardcache.__all__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not modules & set(names)
