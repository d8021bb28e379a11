"""Patterns of paths, as a shell has them: ``*``, ``?``, ``[...]``, ``**`` for any depth, ``{a,b}`` and ``{00..17}``."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from shardcache.errors import SourceError, UsageError

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def files_of(patterns: tuple[str | os.PathLike[str], ...]) -> list[str]:
    """The files that match, each pattern's in the order of their names, each file once.

    Links are followed. A folder that is reached in two ways (a link to one above it) counts once.

    Raises:
        UsageError: there is no pattern.
        SourceError: no file matches one of them.
    """
    if not patterns:
        raise UsageError("a pattern of files is needed, such as 'data/**/*.wav'")
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = {path for one in _braces(os.fspath(pattern)) for path in _matches(one)}
        if not matches:
            raise SourceError(f"no file matches {os.fspath(pattern)!r} (in {os.getcwd()})")
        found |= dict.fromkeys(sorted(matches))
    return _each_once(list(found))


def _matches(pattern: str) -> Iterator[str]:
    if os.path.isfile(pattern):  # a name may hold brackets
        return iter([pattern])
    return filter(os.path.isfile, glob.iglob(pattern, recursive=True))


def _each_once(paths: list[str]) -> list[str]:
    folders: dict[str, str] = {}
    shortest: dict[tuple[str, str], str] = {}
    for path in sorted(paths, key=len):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        shortest.setdefault((folders[folder], name), path)
    kept = set(shortest.values())
    return [path for path in paths if path in kept]


def _braces(pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, dots, last = match[1].partition("..")
    if dots and "," not in match[1]:
        step = 1 if int(first) <= int(last) else -1
        items = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + step, step)]
    else:
        items = match[1].split(",")
    for item in items:
        yield from _braces(pattern[: match.start()] + item + pattern[match.end() :])


def folder_of(path: str | os.PathLike[str]) -> Path:
    """A folder that is there; :class:`SourceError` where it is not."""
    folder = Path(path)
    if not folder.is_dir():
        raise SourceError(f"{folder}: there must be a folder, there is {'a file' if folder.exists() else 'nothing'}")
    return folder


def missing(package: str, extra: str) -> str:
    """What to say where a package is not installed."""
    return f"this source needs {package}: pip install 'shardcache[{extra}]'"
