"""The right to build: an exclusive lock of the kernel on a file, which ends with its holder, however that ends.

The file itself says nothing, and is never deleted: who waits for it and who comes later must mean the same one. A fork
lets go of it, since a child that outlives its parent would hold it on.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import filelock

from shardcache.errors import StorageError
from shardcache.format.files import let_go, storage_errors

_held: set[int] = set()
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)


class BuildLock:
    """A lock on a file, for one thread of one process at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take it, if nobody has it."""
        with storage_errors(self._file):
            descriptor = self._open()
        try:
            taken = _lock(descriptor, self._file)
        except BaseException:
            let_go(descriptor)
            raise
        if taken:
            self._descriptor = descriptor
            _held.add(descriptor)
        else:
            let_go(descriptor)
        return taken

    def release(self) -> None:
        """Let go of it, if it is held."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            let_go(self._descriptor)
            self._descriptor = None

    def is_taken(self) -> bool:
        """Whether somebody holds it; needs no permission to write."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            return not _lock(descriptor, self._file)
        except StorageError:
            return True
        finally:
            let_go(descriptor)

    def _open(self) -> int:
        """For writing where that is permitted: NFS grants the lock to nobody else."""
        mode = stat.S_IMODE(os.stat(self._file.parent).st_mode) & 0o666 | 0o444  # who may write beside it may lock it
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        except FileExistsError:
            try:
                return os.open(self._file, os.O_RDWR | _FLAGS)
            except PermissionError:
                return os.open(self._file, os.O_RDONLY | _FLAGS)
        with suppress(PermissionError):
            os.fchmod(descriptor, mode)
        return descriptor


def _lock(descriptor: int, file: Path) -> bool:
    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise StorageError(f"{file}: cannot be locked ({error.strerror})") from error
        raise StorageError(
            f"{file}: this file system has no locks ({error.strerror}), without which two processes would build at "
            "once; choose a folder on another one (cache_dir=, SHARDCACHE_HOME)"
        ) from error


def _let_go() -> None:
    for descriptor in _held:
        let_go(descriptor)  # the parent's stays locked
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
