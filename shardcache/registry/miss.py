"""What is said where no cache fits: what differs from those that are there, and the command that would build one."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from shardcache.registry.asked import Asked
from shardcache.registry.explain import changed_since, differences
from shardcache.registry.fingerprint import Fingerprint
from shardcache.registry.modules import file_of, is_project, name_of
from shardcache.registry.store import slots

_FLAGS = ("allow_random", "force")
_OPTIONS = (
    "layout seed codec block_bytes num_workers shuffle_window on_error max_errors sample_timeout max_shards_per_worker"
).split()
_BY_HAND = (
    "To build it, call get_or_build in one process with on_miss='build' (it takes what no command line can say: {})"
)


def reason(root: Path, name: str, made_of: Fingerprint) -> str:
    """In what this fingerprint differs from the last used cache of its name."""
    for slot in slots(root, name):
        if not slot.is_published:
            continue
        entry = slot.entry()
        if entry is None:
            if slot.key == made_of.key:
                return f"what is known of {slot.key[:12]} was given up, or {slot.beside('json')} cannot be read"
            continue
        found = differences(entry.fingerprint, made_of) or changed_since(entry, str(root))
        found = found or ["a new one is wanted"]
        return f"the last used one, {slot.key[:12]}, differs: " + "; ".join(text.splitlines()[0] for text in found)
    return f"there is no cache of this name in {root}"


def advice(asked: Asked) -> str:
    """The command that builds what is asked for, or why there is none."""
    try:
        return f"To build it: {' '.join(map(shlex.quote, _words(asked)))}"
    except _NoCommandError as error:
        return _BY_HAND.format(error)


class _NoCommandError(Exception):
    """Something that a command line cannot say."""


def target_of(factory: Any) -> str:
    """What a person would write for the factory."""
    if isinstance(factory, str):
        return factory
    module = name_of(str(getattr(factory, "__module__", "?")))
    return f"{module}:{getattr(factory, '__qualname__', type(factory).__qualname__)}"


def _words(asked: Asked) -> Iterator[str]:
    target = _target(asked.factory)
    package = _package_folder(asked.factory)
    if package is not None:
        yield from ("env", f"PYTHONPATH={package}")
    yield from ("shardcache", "build", target, "--name", asked.name)
    for name, value in asked.kwargs.items():
        yield from ("--arg", f"{name}={_as_argument(f'argument {name}', value)}")
    yield from _options(asked)
    if asked.given_root is not None:
        yield from ("--cache-dir", str(asked.given_root))
    if asked.allow_shared:
        yield "--allow-shared"


def _options(asked: Asked) -> Iterator[str]:
    for one in asked.deps:
        if not isinstance(one, (str, PurePath)):
            raise _NoCommandError(f"a dependency of type {type(one).__name__}")
        yield from ("--dep", str(one) if isinstance(one, str) or os.sep in str(one) else f"./{one}")
    if asked.version is not None:
        yield from ("--version", asked.version)
    if asked.data_check != "mtime":
        yield from ("--data-check", asked.data_check)
    for name, value in asked.options.items():
        option = f"--{name.replace('_', '-')}"
        if name == "codec" and isinstance(value, Mapping):
            for column, codec in value.items():
                yield from (option, f"{column}={codec}")
        elif name in _FLAGS:
            yield from [option] * bool(value)
        elif name not in _OPTIONS and value is not None:
            raise _NoCommandError(f"{name}={value!r}")
        elif value is not None:
            yield from (option, str(value))


def _target(factory: Any) -> str:
    """A target that another process finds: a file where it is no package, else the module."""
    if isinstance(factory, str):
        return factory
    name, module = getattr(factory, "__qualname__", None), getattr(factory, "__module__", None)
    if name is None or module is None or not name.replace(".", "").isidentifier():
        raise _NoCommandError(f"a factory of type {type(factory).__name__}" if name is None else f"the factory {name}")
    file = file_of(module)
    if "." in name_of(module) or not is_project(module):
        return f"{name_of(module)}:{name}"
    if file is None:
        raise _NoCommandError(f"{name}, which is defined in no file")
    return f"{os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file}:{name}"


def _package_folder(factory: Any) -> str | None:
    """The folder from which the package of a factory is imported, where it is not found by itself."""
    module = str(getattr(factory, "__module__", ""))
    file = None if isinstance(factory, str) or not is_project(module) else file_of(module)
    if file is None or "." not in name_of(module):
        return None
    folder = Path(file).parents[name_of(module).count(".") + (Path(file).name == "__init__.py")]
    return None if folder == Path.cwd() else str(folder)


def _as_argument(what: str, value: Any) -> str:
    if isinstance(value, PurePath):
        return str(value) if os.sep in str(value) else f"./{value}"
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
        return json.dumps(value)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = "null"
    if not _is_same(json.loads(text), value):
        raise _NoCommandError(f"{what} of type {type(value).__name__}")
    return text


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return bool(one == other)
