"""The code that a dataset runs: its class and factory, and what they reach in the project, as normalised source.

Source is compared as its syntax tree: comments, formatting and docstrings do not matter, anything else does. What the
code refers to (globals, defaults, what closures hold, attributes of classes, environment variables) enters as text,
paths as the files there. What belongs to an installed package enters as the package's version; the standard library as
that of Python.
"""

import dis
import enum
import functools
import hashlib
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any

from shardcache.builder.source import find_module, import_module
from shardcache.errors import UsageError
from shardcache.registry import source
from shardcache.registry.data import as_path
from shardcache.registry.literal import Literals, plain_text
from shardcache.registry.modules import file_of, is_installed, is_project, name_of, versions_of

_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
# Variables that differ from one process, user or machine to the next, and say nothing about data.
_OF_THE_PROCESS = frozenset(
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK NODE_RANK MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES "
    "HOME USER LOGNAME HOSTNAME PWD OLDPWD TMPDIR PATH TERM SHLVL OMP_NUM_THREADS".split()
)
_PREFIXES = ("SLURM_", "TORCHELASTIC_", "NCCL_", "OMPI_", "PMI_")


class Code:
    """Collects what is reached: ``functions`` by qualified name (normalised source), ``packages`` (their versions).

    ``met`` is given the existing paths among values, with the name of what refers to them.
    """

    def __init__(self, met: Callable[[str, str], str]) -> None:
        self.functions: dict[str, str] = {}
        self.packages: dict[str, str] = {}
        self._met, self._here = met, ""
        self._literals = Literals(self.reach, self._path)
        self._seen: dict[int, tuple[str, Any]] = {}  # with what has the id, so that nothing else can get it
        self._waiting: deque[tuple[str, str, Any]] = deque()

    def reach(self, thing: Any) -> str:
        """Have a function, method, class or module looked at; the name under which it is kept."""
        if isinstance(thing, types.MethodType):
            return f"{self.reach(thing.__func__)} of {self._literals.write(thing.__self__, 'a bound method')}"
        if isinstance(thing, types.ModuleType):
            self.packages |= versions_of(thing.__name__)
            return name_of(thing.__name__)
        if id(thing) in self._seen:
            return self._seen[id(thing)][0]
        module = str(getattr(thing, "__module__", None) or type(thing).__module__)
        called = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", type(thing).__qualname__)
        name = f"{name_of(module)}.{called}"
        self._seen[id(thing)] = name, thing
        self._waiting.append((name, module, thing))
        return name

    def follow(self) -> None:
        """Look at all that was reached, and at what that reaches."""
        while self._waiting:
            name, module, thing = self._waiting.popleft()
            self._here = os.path.dirname(file_of(module) or "")
            if not is_project(module):
                self.packages |= versions_of(module)
            elif isinstance(thing, type):
                self._add_class(name, thing)
            elif isinstance(thing, types.FunctionType):
                if "__create_fn__" not in name:  # a dataclass says it all itself
                    self._add_source(name, thing)
                    self._add_references(name, thing)
            elif wrapped := getattr(thing, "__wrapped__", None) or getattr(thing, "py_func", None):
                self.reach(wrapped)
            else:
                self._add_compiled(module)

    def _note(self, name: str, text: str) -> None:
        """Two things may have one name: closures of one function, lambdas of one module."""
        known = self.functions.get(name)
        self.functions[name] = text if known is None or known == text else f"{known}\n{text}"

    def _write(self, name: str, value: Any) -> None:
        text = self._literals.write(value, name)
        if not isinstance(value, (types.FunctionType, type)):  # these are known by their source
            self._note(name, text)

    def _add_compiled(self, module: str) -> None:
        """A function of a library of the project's own."""
        file = file_of(module)
        if file is not None and not file.endswith(".py"):
            with open(file, "rb") as library:
                self._note(name_of(module), f"sha256 {hashlib.file_digest(library, 'sha256').hexdigest()}")

    def _add_class(self, name: str, cls: type) -> None:
        nodes = self._add_source(name, cls)
        written = source.constants_of(nodes)
        for base in (*cls.__bases__, type(cls)):
            self.reach(base)
        for attribute, value in vars(cls).items():
            functions = _functions_of(value)
            for function in functions:
                if is_project(function.__module__ or "builtins"):
                    self._check(f"{name}.{attribute}", function)
                    self._add_references(f"{name}.{attribute}", function)
                    if not function.__code__.co_qualname.startswith((f"{cls.__qualname__}.", "__create_fn__")):
                        self.reach(function)  # it comes from elsewhere; a dataclass's own are said by the class
            value = value.value if isinstance(value, enum.Enum) else value
            is_said = attribute in written and type(value) is type(written[attribute]) and value == written[attribute]
            if not (functions or is_said or _is_private(attribute) or _is_machinery(value)):
                self._write(f"{name}.{attribute}", value)

    def _add_source(self, name: str, thing: Any) -> source.Nodes:
        if isinstance(thing, types.FunctionType):
            self._check(name, thing)
        nodes = source.nodes_of(thing)
        if nodes is None and (text := _said_by_itself(thing)) is not None:
            self._note(name, text)
            return []
        if nodes is None:
            raise UsageError(
                f"{name} has no source that could be compared (made by exec, or at a prompt): put it into a file, "
                "or say version= and change it when the code changes"
            )
        self._note(name, source.text_of(nodes))
        for variable in sorted(source.environment_of(nodes)):
            if variable not in _OF_THE_PROCESS and not variable.startswith(_PREFIXES):
                self._add_variable(name, variable)
        module = getattr(thing, "__module__", None) or ""
        for imported in source.imports_of(nodes):
            self._add_import(name, module, imported, source.names_of(nodes))
        return nodes

    @staticmethod
    def _check(name: str, function: types.FunctionType) -> None:
        if source.is_outdated(function):
            raise UsageError(
                f"{name}: {function.__code__.co_filename} was edited after it was imported, so that its source is not "
                "what runs here: start Python again, or reload the module"
            )

    def _add_variable(self, name: str, variable: str) -> None:
        """An environment variable: the files that it names, else a digest, since it may be a secret."""
        value, label = os.environ.get(variable), f"{name}: environment variable {variable}"
        path = as_path(value) if value else None
        if value is not None:
            digest = hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
            self._note(label, self._met(path, label) if path else f"sha256 {digest}")

    def _add_import(self, name: str, importer: str, imported: tuple[str, str | None], used: set[str]) -> None:
        """What a function imports when it runs; an installed package is not imported for that."""
        found = find_module(imported[0], importer)
        if found is None:
            return
        module, file = found
        top = module.partition(".")[0]
        if file is None or top in sys.stdlib_module_names or is_installed(os.path.realpath(file), top):
            self.packages |= versions_of(module)
            return
        value = import_module(module)
        if imported[1] is not None:
            value = getattr(value, imported[1], None)
        for key, one in self._global(imported[1] or module, value, used):
            self._write(f"{name}: {key}", one)

    def _add_references(self, name: str, function: types.FunctionType) -> None:
        """What the names in a function stand for: defaults, what it closes over, globals."""
        values: dict[str, Any] = {}
        for number, value in enumerate(function.__defaults__ or ()):
            values[f"default {number}"] = value
        values |= {f"default {key}": value for key, value in (function.__kwdefaults__ or {}).items()}
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if key != "__class__":
                values[key] = _content(cell)
        read, written = _global_names(function.__code__)
        names = set(_names(function.__code__))
        for key in sorted((read - written) & function.__globals__.keys()):  # what code assigns is its state
            values |= dict(self._global(key, function.__globals__[key], names))
        for key, value in values.items():
            if value is not function and not key.startswith("__"):
                self._write(f"{name}: {key}", value)
        for constant in _texts(function.__code__):
            path = as_path(constant)
            if path is not None and os.path.isfile(path):
                self._note(f"{name}: {constant!r}", self._met(path, f"{name}: {constant!r}"))

    def _global(self, key: str, value: Any, names: set[str]) -> Iterator[tuple[str, Any]]:
        """A global, or what is used of it where it is a module of the project."""
        if not isinstance(value, types.ModuleType):
            yield key, value
        elif is_project(value.__name__):
            for attribute in sorted(names & vars(value).keys()):
                yield from self._global(f"{key}.{attribute}", getattr(value, attribute), names)
        else:
            self.packages |= versions_of(value.__name__)

    def _path(self, value: Any, where: str) -> str:
        """A text or path among the values of code. Folders around the code itself are places, not data."""
        path = as_path(value)
        if path is not None and not f"{self._here}/".startswith(path.rstrip("/") + "/"):
            return self._met(path, where)
        text = str(value)
        if self._here and os.path.isabs(text) and _have_a_home(text, self._here):
            return f"<here>/{os.path.relpath(text, self._here)}"
        return plain_text(f"./{value}" if isinstance(value, PurePath) and os.sep not in text else text)


def _have_a_home(one: str, other: str) -> bool:
    """Whether two places move together: below a folder that is neither the root nor one of all homes."""
    common = os.path.commonpath((os.path.normpath(one), other))
    return common not in (os.sep, os.path.expanduser("~"), os.path.dirname(os.path.expanduser("~")))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in _inner(code):
        yield from _names(inner)


def _inner(code: types.CodeType) -> Iterable[types.CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, types.CodeType))


def _texts(code: types.CodeType) -> Iterator[str]:
    yield from (constant for constant in code.co_consts if isinstance(constant, str) and os.sep in constant)
    for inner in _inner(code):
        yield from _texts(inner)


def _global_names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The globals that code reads, and those that it assigns."""
    found = [(one.opname, one.argval) for one in dis.get_instructions(code)]
    read = {name for operation, name in found if operation in _GLOBALS}
    written = {name for operation, name in found if operation == "STORE_GLOBAL"}
    for inner in _inner(code):
        below = _global_names(inner)
        read, written = read | below[0], written | below[1]
    return read, written


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet
        return None


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions behind an attribute of a class."""
    if isinstance(value, property):
        found = [value.fget, value.fset]
    elif isinstance(value, functools.singledispatchmethod):
        found = list(value.dispatcher.registry.values())
    elif isinstance(value, (staticmethod, classmethod)):
        found = [value.__func__]
    elif isinstance(value, (functools.cached_property, functools.partialmethod)):
        found = [value.func]
    else:
        found = [getattr(value, "__wrapped__", value)]
    return [function for function in found if isinstance(function, types.FunctionType)]


def _is_private(attribute: str) -> bool:
    """Whether an attribute of a class belongs to Python, or to the library that made the class."""
    return attribute.startswith(("__", "_abc_")) or (attribute[0] == attribute[-1] == "_")


def _is_machinery(value: Any) -> bool:
    """Whether an attribute of a class is how Python makes it work, not a value."""
    return type(value).__name__ in ("member_descriptor", "getset_descriptor", "_tuplegetter", "_abc_data", "TypeVar")


def _said_by_itself(thing: Any) -> str | None:
    """A class that was made by a call of the standard library and has no source of its own."""
    if issubclass(thing, tuple) if isinstance(thing, type) else False:
        fields = getattr(thing, "_fields", None)
        return None if fields is None else f"namedtuple{fields}{sorted(getattr(thing, '_field_defaults', {}))}"
    members = getattr(thing, "__members__", None)
    return None if members is None else f"enum({', '.join(members)})"
