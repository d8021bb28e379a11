"""Who may be in a directory that grows: one whole build alone, or parts of one build together.

A whole build locks ``lock`` for itself. Parts lock it together, and each of them a file of its own for itself. Locks
end with the process that has them, however it ends.
"""

import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

import filelock

from shardcache.builder.parts import Part, parts_in
from shardcache.errors import BuildInProgressError, BuildMismatchError, StorageError
from shardcache.format.files import let_go

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
_ATTEMPTS = 10
_PAUSE_S = 0.1


class Whole:
    """The lock of a whole build."""

    def __init__(self, directory: Path, target: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(directory / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BuildInProgressError(f"{target}: another process is building this cache now") from None

    def alone(self) -> bool:
        """Whether nobody else is in the directory."""
        return True

    def release(self) -> None:
        with suppress(OSError):  # of the file system; the lock ends with this process at the latest
            self._lock.release()


class Shared:
    """The locks of a part."""

    def __init__(self, directory: Path, target: Path, part: Part) -> None:
        self._descriptor = -1
        self._lock = filelock.FileLock(directory / f"{part.name}.lock")
        try:
            self._share(directory, target)
            self._lock.acquire(timeout=0)
            self._refuse_others(directory, target, part)
        except filelock.Timeout:
            self.release()
            raise BuildInProgressError(f"{target}: another process is building part {part} of this cache now") from None
        except BaseException:
            self.release()
            raise

    def _share(self, directory: Path, target: Path) -> None:
        """Lock the directory together with other parts; again, where it was deleted meanwhile."""
        if fcntl is None:
            raise StorageError(f"{directory}: this system has no locks that several parts could share")
        for attempt in range(_ATTEMPTS):
            directory.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = os.open(
                    directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
                )
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE_S if attempt else 0)  # a part that gives up has it for a moment
            else:
                if os.fstat(self._descriptor).st_nlink:
                    _held.add(self)
                    return
            let_go(self._descriptor)
            self._descriptor = -1
        raise BuildInProgressError(f"{target}: another process is building the whole of this cache now")

    def _refuse_others(self, directory: Path, target: Path, part: Part) -> None:
        """Parts of another division have other shards: they must not run at the same time."""
        for other in sorted(parts_in(directory)):
            if other.of == part.of:
                continue
            try:
                with filelock.FileLock(directory / f"{other.name}.lock").acquire(timeout=0):
                    continue
            except filelock.Timeout:
                raise BuildMismatchError(
                    f"{target}: is being built in {other.of} parts now (part {other} is under way), this is {part}"
                ) from None

    def alone(self) -> bool:
        """Whether nobody else is in the directory; if so, nobody else gets in. If not, the lock is lost."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        with suppress(OSError):
            self._lock.release()
        self.close()

    def close(self) -> None:
        """In a fork too: an orphan of an executor must not keep the build that continues out."""
        _held.discard(self)
        if self._descriptor >= 0:
            let_go(self._descriptor)
            self._descriptor = -1


_held: "weakref.WeakSet[Shared]" = weakref.WeakSet()


def _close_inherited() -> None:
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
