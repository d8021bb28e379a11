"""What a reader has in hand: the directory that it opened, whatever stands at its path later, and a lock on it.

Everything of a cache is opened relative to that directory, so a reader keeps its snapshot when the cache is renamed
away and another one takes its place. The lock is shared and lies on ``manifest.json``, opened for reading: it needs no
permission to write, is inherited by a fork, and ends with the last process that has it, however that ends. Whoever
deletes a cache asks for the exclusive lock first (:func:`is_held`).
"""

import errno
import glob
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import filelock

from shardcache.format import spec
from shardcache.format.files import let_go

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_LINK_SAFE = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


REPLACED = ".replaced-"  # what a cache that gave way to another is called until nobody reads it


class Hold:
    """A hold on the cache at a path. ``directory`` is a descriptor to open its files from, None where there is none."""

    def __init__(self, path: Path) -> None:
        self.directory: int | None = None
        self._manifest: int | None = None
        with suppress(OSError):  # what is wrong with it is said by who reads the manifest
            self.directory = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
            self._manifest = os.open(spec.MANIFEST_NAME, _LINK_SAFE, dir_fd=self.directory)
            if fcntl is not None:  # some file systems have no locks: then nobody can tell that it is in use
                fcntl.flock(self._manifest, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __del__(self, close: Callable[[int], None] = let_go) -> None:  # bound here: at exit, names go first
        for descriptor in (self._manifest, self.directory):
            if descriptor is not None:
                close(descriptor)


def replaced(path: Path) -> list[Path]:
    """What stood at a path before, and is still there for those who read it."""
    return sorted(path.parent.glob(glob.escape(path.name) + REPLACED + "*"))


def is_held(path: Path) -> bool:
    """Whether a reader holds the cache at a path, on this machine (or on any, where the file system's locks reach).

    Where there are no locks nobody can tell, and it is taken for held: what is in doubt is not deleted.
    """
    try:
        descriptor = _opened(path / spec.MANIFEST_NAME)
    except OSError:
        return False
    try:
        return not filelock.lock_descriptor(descriptor, blocking=False)
    except (OSError, NotImplementedError):
        return True
    finally:
        let_go(descriptor)


def _opened(file: Path) -> int:
    """For writing where that is permitted: NFS grants an exclusive lock to nobody else. Nothing is written."""
    try:
        return os.open(file, _LINK_SAFE | os.O_RDWR)
    except PermissionError:
        return os.open(file, _LINK_SAFE)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(file, _LINK_SAFE)
