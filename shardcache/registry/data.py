"""The files that a dataset reads: lists of names relative to a root, with size and time or with their content."""

import hashlib
import os
import stat
from collections.abc import Iterator

import msgspec

from shardcache.errors import UsageError

_LONGEST = 4096


class Files(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lay under a root: for each file its size, and its time of modification (ns) or its content's SHA-256."""

    root: str
    check: str
    entries: dict[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """Of names, sizes and times or contents; the root does not enter."""
        digest = hashlib.sha256(self.check.encode())
        for name, (size, mark) in self.entries.items():
            digest.update(f"{name}\0{size}\0{mark}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def files_under(root: str, check: str = "mtime") -> Files:
    """The files at or under a path, sorted by name; ``check`` is ``"mtime"`` or ``"content"``."""
    if check not in ("mtime", "content"):
        raise UsageError(f"data_check must be 'mtime' or 'content', was {check!r}")
    if not os.path.exists(root):
        raise UsageError(f"{root}: a file or folder that the dataset depends on is not there")
    entries = {}
    for name, path, status in _walk(root, "", set()):
        entries[name] = (status.st_size, str(status.st_mtime_ns) if check == "mtime" else _content(path))
    return Files(os.path.abspath(root), check, dict(sorted(entries.items())))


def _walk(path: str, name: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, str, os.stat_result]]:
    """(name, path, status) of the files below; links are followed, but not in circles."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        yield name or ".", path, status
        return
    inode = status.st_dev, status.st_ino
    if inode in above:
        return
    with os.scandir(path) as entries:
        for entry in entries:
            below = f"{name}/{entry.name}" if name else entry.name
            try:
                if entry.is_dir():
                    yield from _walk(entry.path, below, above | {inode})
                else:
                    yield below, entry.path, entry.stat()
            except FileNotFoundError:  # a link to nowhere, or a file that went just now
                continue


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def as_path(text: str) -> str | None:
    """The path that an argument is: one that has a separator and is there. The root and a home are taken for text."""
    if os.sep not in text or "\0" in text or len(text) > _LONGEST:
        return None
    try:
        is_there = os.path.exists(text) and os.path.realpath(text) not in (os.sep, os.path.expanduser("~"))
    except OSError:
        return None
    return os.path.abspath(text) if is_there else None
