"""The source of functions and classes as syntax trees, without comments, formatting and docstrings."""

import ast
import functools
import inspect
import linecache
import os
import sys
import textwrap
import time
import types
from collections.abc import Iterator
from typing import Any

Nodes = list[ast.AST]


def nodes_of(thing: Any) -> Nodes | None:
    """The syntax of a function, a class or a lambda, None where there is no source."""
    code = getattr(thing, "__code__", thing)  # the function itself, not what it wraps
    if getattr(code, "co_filename", "") == "<string>":
        return None  # of exec; from 3.13 on inspect takes what `python -c` runs for it
    try:
        lines = inspect.getsource(code)
    except (OSError, TypeError):
        return _nodes_in_cell(thing) if isinstance(thing, type) else None
    if getattr(thing, "__name__", "") == "<lambda>":
        return _lambdas(thing, "".join(inspect.findsource(code)[0]))
    return [_Bare().visit(ast.parse(textwrap.dedent(lines)))]


def _nodes_in_cell(cls: type) -> Nodes | None:
    """A class of a notebook or a prompt: where the code of its methods lies, its own does too."""
    for value in vars(cls).values():
        if isinstance(value, types.FunctionType) and value.__qualname__ == f"{cls.__qualname__}.{value.__name__}":
            lines = linecache.getlines(value.__code__.co_filename)
            found = [node for node in ast.walk(_parsed("".join(lines))) if isinstance(node, ast.ClassDef)]
            same = [node for node in found if node.name == cls.__name__]
            if same:
                return [_Bare().visit(same[-1])]
    return None


def _parsed(text: str) -> ast.AST:
    try:
        return ast.parse(text)
    except SyntaxError:  # with a notebook's own commands
        return ast.Module([], [])


def text_of(nodes: Nodes) -> str:
    """The same text for the same syntax."""
    return "\n".join(map(ast.unparse, nodes))


def constants_of(nodes: Nodes) -> dict[str, Any]:
    """What a class's body assigns that is written there in full."""
    found: dict[str, Any] = {}
    for node in (inner for outer in nodes for inner in getattr(outer, "body", [outer])):
        for statement in getattr(node, "body", ()):
            value = getattr(statement, "value", None)
            targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            if isinstance(value, ast.Constant):
                found |= {target.id: value.value for target in targets if isinstance(target, ast.Name)}
    return found


def environment_of(nodes: Nodes) -> set[str]:
    """The environment variables that are read by a name that is written there."""
    found = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        key: ast.AST | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("os.environ", "environ"):
            key = node.slice
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            is_read = called in ("os.getenv", "getenv", "os.environ.get", "environ.get", "os.environ.setdefault")
            key = node.args[0] if is_read else None
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found.add(key.value)
    return found


def imports_of(nodes: Nodes) -> Iterator[tuple[str, str | None]]:
    """What is imported inside functions: (module, with the dots of a relative one; name in it or None)."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def names_of(nodes: Nodes) -> set[str]:
    """Every name and attribute in it."""
    every = [node for outer in nodes for node in ast.walk(outer)]
    names = {node.id for node in every if isinstance(node, ast.Name)}
    return names | {node.attr for node in every if isinstance(node, ast.Attribute)}


def is_outdated(function: types.FunctionType) -> bool:
    """Whether the file of a function was edited after it was imported, so that the source is not what runs."""
    code = function.__code__
    try:
        if os.stat(code.co_filename).st_mtime <= _started():
            return False
        with open(code.co_filename, "rb") as file:
            whole = compile(file.read(), code.co_filename, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return False
    same = [one for one in _codes(whole) if one.co_qualname == code.co_qualname]
    return bool(same) and all(_identity(one) != _identity(code) for one in same)


@functools.cache
def _started() -> float:
    """When this process began, in seconds since the epoch."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


started = _started


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _lambdas(function: types.FunctionType, source: str) -> Nodes:
    """The lambda that has this code; all that begin on its line where that is not clear."""
    line = function.__code__.co_firstlineno
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda) and node.lineno == line]
    same = [node for node in found if _code_of(node) == _identity(function.__code__)]
    return [_Bare().visit(node) for node in (same or found)]


def _code_of(node: ast.Lambda) -> Any:
    outer = compile(ast.fix_missing_locations(ast.Expression(node)), "<lambda>", "eval")
    return next(_identity(constant) for constant in outer.co_consts if isinstance(constant, types.CodeType))


def _identity(code: types.CodeType) -> tuple[Any, ...]:
    constants = tuple(_identity(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants


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
