"""Reading and writing small files in a directory that somebody else may write to as well."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardcache.errors import ShardCacheError, StorageError, UsageError

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def directory_of(path: Any) -> Path:
    """The absolute path of a directory that a user names; :class:`UsageError` where it can be none."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or "\0" in name:
        raise UsageError(f"path must name a directory, was {path!r}")
    return Path(name).absolute()


class NotAFileError(OSError):
    """A link, a pipe, a directory, or a file that is too large, where a small regular one must be."""


def kind_of(mode: int) -> str:
    """What a file that is not a regular one is, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def read_regular(path: Path, most: int, dir_fd: int | None = None) -> bytes:
    """The content of a regular file of at most ``most`` bytes. No link is followed, and no pipe is waited for.

    With ``dir_fd`` it is the file of that name in the directory that this descriptor has open, wherever it is now.

    Raises:
        NotAFileError: it is something else, or larger.
        OSError: it is not there, or cannot be read.
    """
    try:
        fd = os.open(path if dir_fd is None else path.name, _READ, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        kind = kind_of(stat.S_IFLNK if error.errno == errno.ELOOP else stat.S_IFSOCK)
        raise NotAFileError(error.errno, f"{path.name} must be a regular file, is {kind}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFileError(errno.EINVAL, f"{path.name} must be a regular file, is {kind_of(status.st_mode)}")
        if status.st_size > most:
            raise NotAFileError(errno.EFBIG, f"{path.name} must have at most {most} bytes, has {status.st_size}")
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        let_go(fd)


def let_go(descriptor: int, close: Callable[[int], None] = os.close) -> None:
    """Close a descriptor through which nothing was written: that this fails is no news of what was read or locked.

    For ``__del__`` too: at exit, the names of this module may be gone before the descriptor is.
    """
    try:  # noqa: SIM105 - at exit, the name of `suppress` may be gone
        close(descriptor)
    except OSError:
        pass


@contextmanager
def storage_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Every refusal of the file system as a :class:`StorageError` that names the path: it cannot be written."""
    try:
        yield
    except ShardCacheError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise StorageError(f"{path}: cannot be {verb} ({reason})") from error


def write_whole(path: Path, data: bytes) -> None:
    """All of the file or nothing of it, also after a power cut: write beside, fsync, rename.

    What lies beside from a time before is removed, so that a link there leads nowhere.
    """
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, _WRITE, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
