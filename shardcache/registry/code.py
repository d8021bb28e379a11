"""The code that a dataset runs: its class and factory, and what they reach in the project, as normalised source.

Source is compared as its syntax tree: comments, formatting and docstrings do not matter, anything else does. What
belongs to an installed package enters as the package's version; the standard library as that of Python.
"""

import ast
import functools
import importlib.metadata
import inspect
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardcache.errors import UsageError
from shardcache.registry.literal import Literals

_INSTALLED = {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


class Code:
    """Collects what is reached: ``functions`` by qualified name (normalised source), ``packages`` (their versions)."""

    def __init__(self, literals: Literals) -> None:
        self.functions: dict[str, str] = {}
        self.packages: dict[str, str] = {}
        self._literals = literals
        self._seen: dict[int, tuple[str, Any]] = {}  # with what has the id, so that nothing else can get it

    def reach(self, thing: Any) -> str:
        """Add a function, method, class or module, and what it reaches; the name under which it is kept."""
        if isinstance(thing, types.MethodType):
            return f"{self.reach(thing.__func__)} of {self._literals.write(thing.__self__, 'a bound method')}"
        if isinstance(thing, types.ModuleType):
            self._add_package(thing.__name__)
            return thing.__name__
        if id(thing) in self._seen:
            return self._seen[id(thing)][0]
        module = str(getattr(thing, "__module__", None) or type(thing).__module__)
        name = f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
        self._seen[id(thing)] = name, thing
        if not _is_project(module):
            self._add_package(module)
        elif isinstance(thing, type):
            self._add_class(name, thing)
        elif isinstance(thing, types.FunctionType) and "__create_fn__" not in name:  # a dataclass says it all itself
            self._add_function(name, thing)
        return name

    def _add_package(self, module: str) -> None:
        top = module.partition(".")[0]
        if top == "shardcache" or _is_project(module):
            return  # of shardcache itself, what matters is the version of the format
        if top in sys.stdlib_module_names or top == "builtins":
            self.packages["python"] = ".".join(map(str, sys.version_info[:2]))
            return
        names = _distributions().get(top, [])
        for name in names:
            self.packages[name] = importlib.metadata.version(name)
        if not names:
            self.packages[top] = str(getattr(sys.modules.get(top), "__version__", "unknown"))

    def _add_class(self, name: str, cls: type) -> None:
        self._add_source(name, cls)
        for base in cls.__bases__:
            self.reach(base)
        for attribute, value in vars(cls).items():
            for function in _functions_of(value):
                self._add_references(function, f"{name}.{attribute}")

    def _add_function(self, name: str, function: types.FunctionType) -> None:
        self._add_source(name, function)
        self._add_references(function, name)

    def _add_source(self, name: str, thing: Any) -> None:
        text = _source(thing)
        if text is None:
            raise UsageError(
                f"{name} has no source that could be compared (made by exec, or at a prompt): put it into a file, "
                "or say version= and change it when the code changes"
            )
        self.functions[name] = text if name not in self.functions else self.functions[name] + "\n" + text

    def _add_references(self, function: types.FunctionType, name: str) -> None:
        """What the names in a function stand for: defaults, what it closes over, globals."""
        values: dict[str, Any] = {}
        for number, value in enumerate(function.__defaults__ or ()):
            values[f"default {number}"] = value
        values |= {f"default {key}": value for key, value in (function.__kwdefaults__ or {}).items()}
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if key != "__class__":
                values[key] = _content(cell)
        names = set(_names(function.__code__))
        for key in sorted(names & function.__globals__.keys()):
            values |= dict(self._global(key, function.__globals__[key], names))
        for key, value in values.items():
            if value is function or key.startswith("__"):
                continue
            text = self._literals.write(value, f"{name}: {key}")
            if not isinstance(value, (types.FunctionType, type)):  # these are known by their source
                self.functions[f"{name}: {key}"] = text

    def _global(self, key: str, value: Any, names: set[str]) -> Iterator[tuple[str, Any]]:
        """A global, or what is used of it where it is a module of the project."""
        if not isinstance(value, types.ModuleType):
            yield key, value
        elif _is_project(value.__name__):
            for attribute in sorted(names & vars(value).keys()):
                yield from self._global(f"{key}.{attribute}", getattr(value, attribute), names)
        else:
            self._add_package(value.__name__)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet
        return None


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions behind an attribute of a class."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if isinstance(f, types.FunctionType)]
    if isinstance(value, functools.cached_property):
        value = value.func
    return [value] if isinstance(value, types.FunctionType) else []


def _is_project(module: str) -> bool:
    """Whether a module is code of the project: neither installed nor of the standard library."""
    if module == "__main__":
        return True
    if module.partition(".")[0] in ("builtins", "shardcache") or module.partition(".")[0] in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return False
    path = str(Path(file).resolve())
    return not any(path.startswith(place + "/") for place in _INSTALLED) and "site-packages" not in Path(path).parts


def _source(thing: Any) -> str | None:
    """The normalised source of a function or class, None where there is none."""
    code = getattr(thing, "__code__", thing)  # the function itself, not what it wraps
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):
        return None
    try:
        tree: ast.AST = ast.parse(text)
    except SyntaxError:  # a lambda in the middle of a statement
        tree = ast.Module([], [])
    if getattr(thing, "__name__", "") == "<lambda>":
        return _lambdas(thing, "".join(inspect.findsource(code)[0]))
    return ast.unparse(_Bare().visit(tree))


def _lambdas(function: types.FunctionType, source: str) -> str:
    """The lambda that has this code; all that begin on its line where that is not clear."""
    line = function.__code__.co_firstlineno
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda) and node.lineno == line]
    same = [node for node in found if _code_of(node) == _identity(function.__code__)]
    return "\n".join(ast.unparse(_Bare().visit(node)) for node in (same or found))


def _code_of(node: ast.Lambda) -> Any:
    outer = compile(ast.fix_missing_locations(ast.Expression(node)), "<lambda>", "eval")
    return next(_identity(constant) for constant in outer.co_consts if isinstance(constant, types.CodeType))


def _identity(code: types.CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_names, code.co_varnames, tuple(map(repr, code.co_consts))


class _Bare(ast.NodeTransformer):
    """Without docstrings."""

    def _visit(self, node: Any) -> Any:
        self.generic_visit(node)
        body = node.body
        first = body[0].value if body and isinstance(body[0], ast.Expr) else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            node.body = body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Module = _visit  # noqa: N815


@functools.cache
def _distributions() -> Any:
    return importlib.metadata.packages_distributions()
