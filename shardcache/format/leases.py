"""The shards that this process has open: who uses them, which is closed next, and what a fork does to them.

LMDB refuses to open a file twice in a process, so there is one registry a process, keyed by device and inode. A lease
looks at the file (``lstat``: a regular file of the right size, not modified since it was verified) and pins it. The
first lease verifies the structure (:mod:`shardcache.format.pages`) before LMDB sees the file. At most ``MAX_OPEN`` are
open; the longest unused is closed first, one that is leased never. A file that is replaced at the same path is another
inode, hence opened anew.

What is not seen: bytes that change within a lease, and values (their checksums are the business of
:mod:`shardcache.format.block`). A file that is truncated *while* it is leased ends the process with SIGBUS, as with
every memory map.

**Forks.** LMDB forbids to use across a fork what was opened before it; to close it there is safe when nothing is in
flight. So no thread opens or closes a shard while another one forks, and the child then closes what it inherited and
opens anew what it needs. A shard that was leased at that moment stays open in the child and goes on to be used there:
the lease may be the forking thread's own, and a thread that exists no more may have left LMDB's counts such that
closing would wait for ever. LMDB's rule is about its locks and its table of readers, and a shard is opened without
either.
"""

import errno
import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from shardcache.errors import MissingShardError, ShardCacheError, StorageError
from shardcache.format import pages
from shardcache.format.pages import ShardSeal, damaged

MAX_OPEN = 128  # each costs a file descriptor, of which a process often has 1,024, and a mapping

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


class Closeable(Protocol):
    """What stands for an open shard."""

    def close(self) -> None: ...


Environment = TypeVar("Environment", bound=Closeable)
Opener = Callable[[int, Path, ShardSeal, str], Environment]
Memory = weakref.ref[Any]
Proof = tuple[int, str, int]


class Entry(Generic[Environment]):
    """A file that somebody leases or leased; guarded by the registry's lock."""

    __slots__ = ("environment", "inode", "kept", "opening", "proof", "users")

    def __init__(self, inode: tuple[int, int]) -> None:
        self.inode = inode
        self.environment: Environment | None = None
        self.proof: Proof | None = None  # what was verified
        self.users = 0
        self.kept: list[Memory] = []  # parts of the mapping that were still looked at when their lease ended
        self.opening = threading.RLock()  # the first user verifies and opens; the others of this file wait for it

    def in_use(self, besides: int = 0) -> bool:
        """Whether closing it would take it from somebody."""
        self.kept = [memory for memory in self.kept if memory() is not None]
        return self.users > besides or bool(self.kept)

    def close(self) -> None:
        environment, self.environment, self.proof = self.environment, None, None
        if environment is not None:
            environment.close()


class Registry(Generic[Environment]):
    """All open shards of the process, the longest unused first. ``opener`` is given a verified file."""

    def __init__(self, opener: Opener[Environment]) -> None:
        self._opener = opener
        self._lock = threading.RLock()  # reentrant: a garbage collection that happens inside may end a lease
        self._entries: OrderedDict[tuple[int, int], Entry[Environment]] = OrderedDict()
        os.register_at_fork(before=self._before_fork, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def acquire(self, path: Path, seal: ShardSeal, name: str) -> Entry[Environment]:
        """The open, verified file at a path, pinned until ``release``."""
        try:
            status = os.lstat(path)
        except OSError as error:
            raise unreadable(path, name, error.errno or 0, str(error)) from error
        inode = status.st_dev, status.st_ino
        proof = _proof(status, seal)
        with self._lock:
            entry = self._entries.get(inode)
            if entry is not None and entry.proof == proof and status.st_size == seal.file_bytes:
                entry.users += 1
                self._entries.move_to_end(inode)
                return entry
        _check_file(status, seal, name)
        return self._open(path, seal, name)

    def release(self, entry: Entry[Environment], kept: Iterable[Memory] = ()) -> None:
        """End one ``acquire``; the file stays open at least as long as the memory in ``kept`` lives."""
        with self._lock:
            entry.kept += kept
            entry.users -= 1
            if len(self._entries) > MAX_OPEN:
                self._close_unused(MAX_OPEN)
            if entry.users == 0 and entry.environment is None and self._entries.get(entry.inode) is entry:
                del self._entries[entry.inode]

    def close_all(self) -> None:
        """Close every shard that is not leased."""
        with self._lock:
            self._close_unused(0)

    def _open(self, path: Path, seal: ShardSeal, name: str) -> Entry[Environment]:
        # Without O_NONBLOCK, a named pipe that was put there just now would make this wait for a writer.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags)
        except OSError as error:
            raise unreadable(path, name, error.errno or 0, str(error)) from error
        try:
            status = os.fstat(fd)
            _check_file(status, seal, name)
            entry = self._pin((status.st_dev, status.st_ino))
            try:
                with entry.opening:
                    self._verify(entry, _proof(status, seal), fd, path, seal, name)
            except BaseException:
                self.release(entry)
                raise
            return entry
        finally:
            os.close(fd)

    def _pin(self, inode: tuple[int, int]) -> Entry[Environment]:
        with self._lock:
            entry = self._entries.setdefault(inode, Entry(inode))
            entry.users += 1
            self._entries.move_to_end(inode)
            self._close_unused(MAX_OPEN)
            return entry

    def _verify(self, entry: Entry[Environment], proof: Proof, fd: int, path: Path, seal: ShardSeal, name: str) -> None:
        if entry.proof == proof:
            return
        found = pages.structure(fd, seal.file_bytes, name)
        if found != seal.structure:
            raise damaged(name, f"the digest of its structure must be {seal.structure}, is {found}")
        with self._lock:
            if entry.proof is not None and entry.proof[:2] != proof[:2]:
                if entry.in_use(besides=1):
                    raise damaged(name, "was overwritten by another shard while it was being read")
                entry.close()
            if entry.environment is None:
                entry.environment = self._opener(fd, path, seal, name)
            entry.proof = proof

    def _close_unused(self, most: int) -> None:
        for inode, entry in list(self._entries.items()):
            if len(self._entries) > most and not entry.in_use():
                self._entries.pop(inode, None)
                entry.close()

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _in_parent(self) -> None:
        self._lock.release()

    def _in_child(self) -> None:
        self._lock = threading.RLock()
        for inode, entry in list(self._entries.items()):
            entry.opening = threading.RLock()  # a thread that is no more may have held it
            if entry.environment is None or not entry.in_use():
                del self._entries[inode]
                entry.close()


def unreadable(path: Path, name: str, code: int, text: str) -> ShardCacheError:
    """The error for a file that cannot be opened, from an errno; LMDB's own codes are negative, 0 is neither."""
    if code in (errno.ENOENT, errno.ENOTDIR):
        return MissingShardError(f"{name}: must be the file {path}, which does not exist")
    reason = os.strerror(code) if code > 0 else text
    if code < 0 or code in (errno.ELOOP, errno.ENXIO, errno.EIO):
        return damaged(name, f"cannot be opened: {reason}")
    return StorageError(f"{name}: {path} cannot be opened: {reason}")


def _proof(status: os.stat_result, seal: ShardSeal) -> Proof:
    """What is known of a file once it was verified: its size, its structure, and when it was last modified."""
    return status.st_size, seal.structure, status.st_mtime_ns


def _check_file(status: os.stat_result, seal: ShardSeal, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise damaged(name, f"must be a regular file, is {kind}")
    if status.st_size != seal.file_bytes:
        raise damaged(name, f"must have {seal.file_bytes} bytes, has {status.st_size}")
