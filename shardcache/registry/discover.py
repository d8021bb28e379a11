"""The files that a dataset turned out to use: what attributes of it point at that nobody has named."""

import os
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from shardcache.builder.source import is_dataset
from shardcache.registry import data
from shardcache.registry.data import Files
from shardcache.registry.literal import slots_of
from shardcache.registry.modules import file_of, is_project

_NOTHING = (str, bytes, int, float, complex, type(None), type, types.FunctionType, types.ModuleType)


def discover(dataset: Any, known: Iterable[Files], check: str, skip: str = "") -> dict[str, Files]:
    """The files by the attribute of the dataset that points at them, directly or in what it holds.

    Left out are ``known`` files, and folders in which the dataset's own code lies.
    """
    roots = tuple(files.root.rstrip("/") + "/" for files in known if data.WHOLE in files.folders)
    single = {os.path.join(files.root, name) for files in known for name in files.entries}
    code = os.path.dirname(file_of(type(dataset).__module__) or "") + "/"
    met = data.Met(check, skip)
    for label, value in _Attributes().walk(dataset):
        path = os.path.abspath(value)
        if f"{path}/".startswith(roots) or path in single or code.startswith(path.rstrip("/") + "/"):
            continue
        if data.as_path(value) is not None:
            met.add(path, f"attribute {label}")
    met.close()
    return met.data


class _Attributes:
    """Goes through what an object holds, at any depth, for paths: path objects, and texts with a separator."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def walk(self, dataset: Any) -> Iterator[tuple[str, Any]]:
        """(attribute of the dataset, path) of all that is found."""
        for name, value in _state(dataset).items():
            for path in self._paths(value):
                yield name, path

    def _paths(self, value: Any) -> Iterator[Any]:
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, PurePath) or (isinstance(one, str) and os.sep in one):
                yield one
            elif id(one) in self._seen or isinstance(one, _NOTHING):
                continue
            elif isinstance(one, (list, tuple, set, frozenset, deque, Mapping)):
                self._seen.add(id(one))
                waiting += [*one.values(), *one] if isinstance(one, Mapping) else one
            elif _is_project_or_dataset(one):
                self._seen.add(id(one))
                waiting += _state(one).values()


def _state(thing: Any) -> dict[str, Any]:
    slots = (slot for base in type(thing).__mro__ for slot in slots_of(base))
    return {slot: getattr(thing, slot) for slot in slots if hasattr(thing, slot)} | getattr(thing, "__dict__", {})


def _is_project_or_dataset(thing: Any) -> bool:
    return is_dataset(thing) or is_project(type(thing).__module__)
