"""The files that a dataset reads: lists of names relative to a root, with size and time or with their content."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

import msgspec

from shardcache.errors import UsageError

_LONGEST = 4096
_NOT_DATA = frozenset((".git", "__pycache__", ".ipynb_checkpoints"))  # folders that change by themselves
_TOKEN = re.compile("\0([0-9]+)\0")
WHOLE = "."


class Files(msgspec.Struct, frozen=True):
    """What lay under a root: for each file its size, and its time of modification (ns) or its content's SHA-256.

    ``folders`` are those that count with all that is in them, relative to the root; other files were named one by one.
    """

    root: str
    check: str
    entries: dict[str, tuple[int, str]]
    folders: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of names, sizes and times or contents; the root does not enter."""
        digest = hashlib.sha256(self.check.encode())
        for name, (size, mark) in self.entries.items():
            digest.update(f"{name}\0{size}\0{mark}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @property
    def are_gone(self) -> bool:
        """Whether nothing of them is there any more."""
        names = self.folders or self.entries
        return not any(os.path.exists(os.path.join(self.root, name)) for name in names)

    def again(self, skip: str = "") -> "Files":
        """The same files as they are now; what is gone is left out."""
        found: dict[str, tuple[int, str]] = {}
        single = [name for name in self.entries if not self._is_in_folder(name)]
        for name in [*self.folders, *single]:
            path = os.path.normpath(os.path.join(self.root, name))
            if os.path.exists(path):
                found |= _entries(path, name, self.check, skip)
        return Files(self.root, self.check, dict(sorted(found.items())), self.folders)

    def _is_in_folder(self, name: str) -> bool:
        return any(folder == WHOLE or name.startswith(folder + "/") for folder in self.folders)


def files_of(paths: Iterable[str], check: str = "mtime", skip: str = "") -> Files:
    """The files at or under some paths, sorted by name; ``check`` is ``"mtime"`` or ``"content"``."""
    if check not in ("mtime", "content"):
        raise UsageError(f"data_check must be 'mtime' or 'content', was {check!r}")
    every = sorted(set(paths))
    root = every[0] if len(every) == 1 and os.path.isdir(every[0]) else os.path.commonpath(map(os.path.dirname, every))
    entries: dict[str, tuple[int, str]] = {}
    folders = []
    for path in every:
        name = os.path.relpath(path, root) if path != root else WHOLE
        try:
            if os.path.isdir(path):
                folders.append(name)
            entries |= _entries(path, name, check, skip)
        except FileNotFoundError:
            raise UsageError(f"{path}: a file or folder that the dataset depends on is not there") from None
    return Files(root, check, dict(sorted(entries.items())), tuple(folders))


def _entries(path: str, name: str, check: str, skip: str) -> dict[str, tuple[int, str]]:
    walked = _walk(path, "" if name == WHOLE else name, frozenset(), skip)
    return {
        below: (status.st_size, str(status.st_mtime_ns) if check == "mtime" else _content(file))
        for below, file, status in walked
    }


def _walk(path: str, name: str, above: frozenset[tuple[int, int]], skip: str) -> Iterator[tuple[str, str, Any]]:
    """(name, path, status) of the files below; links are followed, but not in circles."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        yield name, path, status
        return
    inode = status.st_dev, status.st_ino
    if inode in above or path == skip:
        return
    with os.scandir(path) as entries:
        for entry in entries:
            below = f"{name}/{entry.name}" if name else entry.name
            try:
                if not entry.is_dir():
                    yield below, entry.path, entry.stat()
                elif entry.name not in _NOT_DATA:
                    yield from _walk(entry.path, below, above | {inode}, skip)
            except FileNotFoundError:  # a link to nowhere, or a file that went just now
                continue


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Met:
    """Collects the paths that are met among values. What stands for one is a token until all are known."""

    def __init__(self, check: str, skip: str) -> None:
        self.data: dict[str, Files] = {}
        self._check, self._skip = check, skip
        self._paths: list[tuple[str, str]] = []

    def add(self, path: str, label: str) -> str:
        """What stands for an existing path, which ``label`` says whose it is."""
        self._paths.append((label, path))
        return f"\0{len(self._paths) - 1}\0"

    def close(self) -> None:
        """List the files of every label."""
        by_label: dict[str, list[str]] = {}
        for label, path in self._paths:
            by_label.setdefault(label, []).append(path)
        self.data = {label: files_of(paths, self._check, self._skip) for label, paths in by_label.items()}

    def named(self, text: str) -> str:
        """A text with names in place of the tokens; no root is in them."""
        return _TOKEN.sub(self._name, text)

    def _name(self, match: re.Match[str]) -> str:
        label, path = self._paths[int(match[1])]
        name = os.path.relpath(path, self.data[label].root)
        return f"<files of {label}>" if name == WHOLE else f"<{name} of {label}>"


def difference(old: Files, new: Files) -> str:
    """In words, what changed from one list to another; empty where nothing did."""
    added = [name for name in new.entries if name not in old.entries]
    removed = [name for name in old.entries if name not in new.entries]
    changed = [name for name, entry in new.entries.items() if name in old.entries and old.entries[name] != entry]
    said = []
    for what, names in (("changed", changed), ("added", added), ("removed", removed)):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            said.append(f"{len(names):,} {'file' if len(names) == 1 else 'files'} {what} under {new.root}: {shown}")
    if old.check != new.check:
        said.append(f"files were compared by {old.check}, now by {new.check}")
    return "; ".join(said)


def as_path(value: Any, *, bare: bool = False) -> str | None:
    """The path that a text or a path object is: one that is there. The root and a home are taken for text.

    A text without a separator is one only with ``bare``: it may as well be a word.
    """
    text = str(value)
    if "\0" in text or not text or len(text) > _LONGEST:
        return None
    if os.sep not in text and not bare and not isinstance(value, PurePath):
        return None
    path = os.path.abspath(text)
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return None
    return None if is_folder and os.path.realpath(path) in _too_much() else path


def _too_much() -> tuple[str, str]:
    return os.sep, os.path.realpath(os.path.expanduser("~"))
