"""Kinds of change to a project, and whether a fingerprint notices them: the table of the README.

``python -m tests.registry.changes`` writes the table into the README; a test compares it.
"""

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from shardcache.format import spec

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- changes: begin -->", "<!-- changes: end -->"

DATA = '''
"""A project's data."""
import functools
import logging
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import tiny

import helpers
from config import SIZE
from helpers import scale, unused

LIMIT = 10
TABLE = {"a": 1, "b": 2}
lookup = {"c": 3}.get
SETTINGS = Path(__file__).with_name("settings.txt")
log = logging.getLogger("data")


class Mode(Enum):
    FAST = 1
    EXACT = 2


@dataclass
class Crop:
    size: int = 4

    def __call__(self, x):
        return x[: self.size]


def logged(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args) + 0
    return inner


@logged
def decode(x, factor=2, *, bias=0):
    """Docs."""
    # a comment
    return scale(x) * factor + bias


def adder(amount):
    def add(x):
        return x + amount
    return add


@functools.lru_cache
def cached(x):
    return x - 1


plus = adder(5)
minus = adder(7)
twice = lambda x: x * 2


def never_called(x):
    return x


class Base:
    offset = 0

    def shift(self, x):
        return x + self.offset


class Data(Base):
    """Samples."""

    label = "cat"
    factor = helpers.FACTOR

    def __init__(self, root=None, size=SIZE, transform=None, rate=0.5, options=None, mode=Mode.FAST, **more):
        self.more = more
        self.root, self.size, self.transform = root, size, transform
        self.rate, self.options, self.mode = rate, options, mode

    def __len__(self):
        return self.size

    @property
    def name(self):
        return self.label

    @helpers.traced
    def rounded(self, x):
        return x

    @staticmethod
    def clip(x):
        return min(x, LIMIT)

    def __getitem__(self, index):
        log.debug("read")
        value = self.shift(self.clip(decode(index))) + plus(index) + twice(index) + cached(index) + TABLE["a"]
        from late import lately

        value += minus(lookup("c")) + tiny.one() + lately(self.rounded(index)) + len(SETTINGS.read_text())
        value += helpers.later(index) + float(os.environ.get("BIAS", 0))
        return np.float32(value), self.name
'''
HELPERS = """
FACTOR = 2


def traced(function):
    def inner(*args):
        return function(*args) + 0
    return inner


def scale(x):
    return inner(x) * 3


def inner(x):
    return x + 1


def later(x):
    return x - 7


def unused(x):
    return x
"""
CONFIG = "SIZE = 4\nOTHER = 5\n"
LATE = "def lately(x):\n    return x\n\n\ndef never(x):\n    return x\n"


class Text(str):
    """A text that is no ordinary one."""


class Project:
    """A project in a folder, its data, and how it is called; a change is made to it."""

    def __init__(self, folder: Path) -> None:
        self.code, self.files = folder / "code", folder / "files"
        self.code.mkdir()
        for name, text in (("data", DATA), ("helpers", HELPERS), ("config", CONFIG), ("late", LATE)):
            (self.code / f"{name}.py").write_text(text)
        (self.code / "settings.txt").write_text("settings")
        self.site = folder / "site"
        self.install("1.0")
        (self.files / "sub").mkdir(parents=True)
        for name in ("a.txt", "b.txt", "sub/c.txt"):
            (self.files / name).write_text(name)
            os.utime(self.files / name, (10**9, 10**9))
        self.kwargs: dict[str, Any] = {"root": str(self.files), "rate": 0.1, "options": {"x": 1, "y": [1, 2.5]}}
        self.kwargs |= {"exact": Decimal("1.25"), "operation": np.multiply, "text": Text("a")}
        self.kwargs["files"] = [str(self.files / "b.txt"), str(self.files / "sub/c.txt")]
        self.options: dict[str, Any] = {}
        self.python: Callable[[Any], None] = lambda module: None  # done to the imported module, before
        self.factory: Callable[[Any], Any] = lambda module: module.Data

    def install(self, version: str, one: int = 1) -> None:
        """A package of this version, as an installer leaves it."""
        shutil.rmtree(self.site, ignore_errors=True)
        (self.site / "tiny").mkdir(parents=True)
        (self.site / "tiny" / "__init__.py").write_text(f"def one():\n    return {one}\n")
        about = self.site / f"tiny-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        (about / "RECORD").write_text(f"tiny/__init__.py,,\n{about.name}/METADATA,,\n{about.name}/RECORD,,\n")

    def link(self) -> None:
        """Name the data by a link."""
        link = self.files.with_name("link")
        link.symlink_to(self.files)
        self.kwargs["root"] = str(link)

    def called(self, factory: Callable[[Any], Any]) -> None:
        """Call another factory, which may change the arguments too."""
        self.factory = factory

    def first(self, python: Callable[[Any], Any]) -> None:
        """Do something to the module when it is imported."""
        self.python = python

    def rewrite(self, name: str, text: str, *, keep_time: bool = False) -> None:
        (self.files / name).write_text(text)
        if keep_time:
            os.utime(self.files / name, (10**9, 10**9))

    def edit(self, old: str, new: str, module: str = "data") -> None:
        path = self.code / f"{module}.py"
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new, 1))

    def touch(self, name: str) -> None:
        os.utime(self.files / name, (10**9 + 5, 10**9 + 5))

    def move(self, what: str) -> None:
        old = getattr(self, what)
        new = old.with_name(f"{what}-elsewhere")
        shutil.move(old, new)
        setattr(self, what, new)
        if what == "files":
            self.kwargs |= {"root": str(new), "files": [str(new / "b.txt"), str(new / "sub/c.txt")]}


@dataclass(frozen=True)
class Change:
    what: str
    make: Callable[[Project], Any]
    noticed: bool = True
    is_caught: bool = False  # by the spot check


def _edit(what: str, old: str, new: str, module: str = "data", noticed: bool = True) -> Change:
    return Change(what, lambda project: project.edit(old, new, module), noticed)


def _kwargs(what: str, noticed: bool = True, **kwargs: Any) -> Change:
    return Change(what, lambda project: project.kwargs.update(kwargs), noticed)


def _options(what: str, noticed: bool = True, **options: Any) -> Change:
    return Change(what, lambda project: project.options.update(options), noticed)


def _files(what: str, make: Callable[[Project], Any], noticed: bool = True, is_caught: bool = False) -> Change:
    return Change(what, make, noticed, is_caught)


def _content(make: Callable[[Project], Any]) -> Callable[[Project], Any]:
    def both(project: Project) -> None:
        project.options["data_check"] = "content"
        make(project)

    return both


def _reordered(project: Project) -> None:
    project.kwargs = dict(reversed(project.kwargs.items()))


CHANGES = [
    Change("nothing: another process", lambda project: None, False),
    # Code
    _edit("a statement of `__getitem__`", "+ plus(index)", "- plus(index)"),
    _edit("a constant in a function", "x - 1", "x - 2"),
    _edit("a function that it calls", "scale(x) * factor", "scale(x) / factor"),
    _edit("a function of another module of the project", "inner(x) * 3", "inner(x) * 4", "helpers"),
    _edit("a function that this one calls there", "x + 1", "x + 2", "helpers"),
    _edit("a function that is used as `module.function`", "x - 7", "x - 8", "helpers"),
    _edit("a decorator", "function(*args) + 0", "function(*args) + 1"),
    _edit("a decorated function", "+ bias", "- bias"),
    _edit("a function behind `functools.lru_cache`", "return x - 1", "return x - 3"),
    _edit("a lambda", "x * 2", "x * 3"),
    _edit("a function inside a function", "x + amount", "x - amount"),
    _edit("a closure variable", "adder(5)", "adder(6)"),
    _edit("a default argument", "factor=2", "factor=3"),
    _edit("a keyword-only default argument", "bias=0", "bias=1"),
    _edit("a global constant", "LIMIT = 10", "LIMIT = 11"),
    _edit("a global dict", '"b": 2', '"b": 3'),
    _edit("an imported constant, used as a default", "SIZE = 4", "SIZE = 5", "config"),
    _edit("a class attribute", 'label = "cat"', 'label = "dog"'),
    _edit("a class attribute of a base class", "offset = 0", "offset = 1"),
    _edit("a method of a base class", "x + self.offset", "x - self.offset"),
    _edit("a property", "return self.label", "return self.label + '!'"),
    _edit("a static method", "min(x, LIMIT)", "max(x, LIMIT)"),
    _edit("`__len__`", "return self.size", "return self.size - 1"),
    _edit("`__init__`", "self.rate, self.options", "self.options, self.rate"),
    _edit("a new method", "    def __len__", "    def extra(self):\n        return 1\n\n    def __len__"),
    _edit("another base class", "class Data(Base):", "class Data(Base, dict):"),
    _edit(
        "another order of statements",
        'log.debug("read")\n        value = ',
        'value = 0\n        log.debug("read")\n        value = ',
    ),
    _edit(
        "the name of a local variable",
        "def add(x):\n        return x + amount",
        "def add(y):\n        return y + amount",
    ),
    _edit("a comment", "# a comment", "# another comment", noticed=False),
    _edit("a docstring", '"""Docs."""', '"""Other docs."""', noticed=False),
    _edit("a docstring of the class", '"""Samples."""', '"""More samples."""', noticed=False),
    _edit("blank lines", "class Data(Base):", "\n\n\nclass Data(Base):", noticed=False),
    _edit(
        "line breaks and spaces", "return scale(x) * factor", "return (scale( x )\n            * factor)", noticed=False
    ),
    _edit("the quotes of a string", 'label = "cat"', "label = 'cat'", noticed=False),
    _edit("how a number is written", "LIMIT = 10", "LIMIT = 0xA", noticed=False),
    _edit(
        "a function that is not reached",
        "def never_called(x):\n    return x",
        "def never_called(x):\n    return 2",
        noticed=False,
    ),
    _edit(
        "an imported function that is not used",
        "def unused(x):\n    return x",
        "def unused(x):\n    return 2",
        "helpers",
        noticed=False,
    ),
    _edit("a constant that is not used", "OTHER = 5", "OTHER = 6", "config", noticed=False),
    _edit("the name of a logger", 'getLogger("data")', 'getLogger("other")', noticed=False),
    Change("the folder of the checkout", lambda project: project.move("code"), False),
    Change("a global that is set from outside", lambda p: p.first(lambda m: setattr(m, "LIMIT", 3))),
    Change(
        "a method that is replaced at run time",
        lambda p: p.first(lambda m: setattr(m.Data, "clip", staticmethod(m.never_called))),
    ),
    Change("an environment variable that the code reads", lambda p: p.first(lambda m: os.environ.update(BIAS="1"))),
    Change("another environment variable", lambda p: p.first(lambda m: os.environ.update(OTHER_BIAS="1")), False),
    _edit("another closure of the same function", "minus = adder(7)", "minus = adder(8)"),
    _edit("a class attribute that comes from another module", "FACTOR = 2", "FACTOR = 3", "helpers"),
    _edit("a decorator of a method", "function(*args) + 0", "function(*args) + 1", "helpers"),
    _edit("a function that is imported inside a function", "return x", "return x + 1", "late"),
    _edit(
        "what is not used of a module that is imported inside a function",
        "def never(x):\n    return x",
        "def never(x):\n    return 2",
        "late",
        noticed=False,
    ),
    _edit("what a global like `TABLE.get` is bound to", '{"c": 3}', '{"c": 4}'),
    Change("a file that a global names", lambda p: (p.code / "settings.txt").write_text("other")),
    Change("an upgraded package that the code uses", lambda p: p.install("2.0")),
    Change("the code of an installed package, without a new version", lambda p: p.install("1.0", one=2), False, True),
    Change("the version of the format", lambda p: p.first(lambda m: setattr(spec, "FORMAT_VERSION", 99))),
    # Arguments
    _kwargs("an argument", rate=0.2),
    _kwargs("an argument that was a default", size=9),
    _kwargs("a default that is given explicitly", False, size=4),
    _kwargs("1 instead of 1.0", options={"x": 1.0, "y": [1, 2.5]}),
    _kwargs("True instead of 1", options={"x": True, "y": [1, 2.5]}),
    _kwargs("a float that is written in another way", False, rate=1e-1),
    _kwargs("a value deep in an argument", options={"x": 1, "y": [1, 2.6]}),
    _kwargs("another order in a list", options={"x": 1, "y": [2.5, 1]}),
    _kwargs("another order of a dict's keys", False, options={"y": [1, 2.5], "x": 1}),
    _kwargs("a tuple instead of a list", options={"x": 1, "y": (1, 2.5)}),
    Change("another order of the arguments", _reordered, False),
    Change("an enumeration's member", lambda p: p.called(lambda m: p.kwargs.update(mode=m.Mode.EXACT) or m.Data)),
    Change(
        "a function as an argument, another one",
        lambda p: p.called(lambda m: p.kwargs.update(transform=m.decode) or m.Data),
    ),
    Change(
        "the attribute of an object that is an argument",
        lambda p: p.called(lambda m: p.kwargs.update(transform=m.Crop(5)) or m.Data),
    ),
    Change(
        "a function in C as an argument, another one",
        lambda p: p.kwargs.update(operation=np.add),
    ),
    _kwargs("the value of an object in C", exact=Decimal("1.5")),
    _kwargs("the value of a text of one's own class", text=Text("b")),
    Change("`functools.partial` around the factory", lambda p: p.called(lambda m: functools.partial(m.Data, size=8))),
    Change("another factory of the same module", lambda p: p.called(lambda m: m.Base) or p.kwargs.clear()),
    # Files
    _files("the content of a file, of another size", lambda p: (p.files / "a.txt").write_text("longer than before")),
    _files("the content of a file, of the same size", lambda p: (p.files / "a.txt").write_text("b.txt")),
    _files("a file that is touched", lambda p: p.touch("a.txt")),
    _files('a file that is touched, with `data_check="content"`', _content(lambda p: p.touch("a.txt")), False),
    _files(
        'the content of a file, its time put back, with `data_check="content"`',
        _content(lambda p: p.rewrite("a.txt", "B.txt", keep_time=True)),
    ),
    _files(
        "the content of a file, of the same size, its time put back",
        lambda p: p.rewrite("a.txt", "B.txt", keep_time=True),
        False,
        True,
    ),
    _files("a new file", lambda p: (p.files / "new.txt").write_text("new")),
    _files("a file that is gone", lambda p: (p.files / "b.txt").unlink()),
    _files("a file in a subfolder", lambda p: p.touch("sub/c.txt")),
    _files("a renamed file", lambda p: (p.files / "b.txt").rename(p.files / "z.txt")),
    _files("a renamed subfolder", lambda p: (p.files / "sub").rename(p.files / "bus")),
    _files("a new empty folder", lambda p: (p.files / "empty").mkdir(), False),
    _files("the folder of the data, moved", lambda p: p.move("files"), False),
    _files("the permissions of a file", lambda p: (p.files / "a.txt").chmod(0o600), False),
    Change("the data, named by a link", lambda p: p.link(), False),
    Change("a file that a list in an argument names", lambda p: p.touch("b.txt")),
    # How it is built
    _options("`layout=`", layout="source"),
    _options("`seed=`", seed=1),
    _options("`codec=`", codec="none"),
    _options("`on_error=`", on_error="skip"),
    _options("`max_errors=`", False, max_errors=5),
    _options("`block_bytes=`", block_bytes=4096),
    _options("`num_workers=`", False, num_workers=4),
    _options("`version=`, where there was none", version="2"),
    _options("a value in `deps=`", deps=(3,)),
]


def table() -> str:
    """The rows for the README."""
    unnoticed = {True: "no; the spot check finds it", False: "no"}
    rows = [f"| {change.what} | {'yes' if change.noticed else unnoticed[change.is_caught]} |" for change in CHANGES]
    return "\n".join(["| change | noticed |", "|---|---|", *rows])


def in_readme(text: str) -> str:
    """The README with today's table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(in_readme(readme.read_text(encoding="utf-8")), encoding="utf-8")
