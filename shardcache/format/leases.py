"""Reading shards: what is checked before a byte of one is used, how many are open, and what a value is read with.

A lease looks at the file (``lstat``: a regular file of the right size, not modified since it was verified). The first
one walks its tree (:mod:`shardcache.format.pages`), compares the digest of its structure, and keeps where every value
lies: from then on a value is a place in the file. LMDB itself takes no part in reading, so nothing that is wrong with a
file can reach it, any number of processes and threads may read one, and a fork needs no care.

``io="mmap"`` hands out views of the mapped file. One that is truncated under a reader ends the process with SIGBUS, as
with every memory map. ``io="pread"`` copies each value out of the file, straight to where it belongs if that is known,
and every failure is an error.

A shard stays open as long as somebody holds a lease on it or a view of it. Beyond that the ``MAX_OPEN`` that were used
last are kept, fewer where their tables are large. A file that is replaced at its path is another inode, hence opened
anew. What is not seen: bytes that change while they are read, and values, whose checksums are the business of
:mod:`shardcache.format.block`.
"""

import errno
import mmap
import os
import stat
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from shardcache.errors import MissingShardError, ShardCacheError, StorageError, UsageError
from shardcache.format import pages
from shardcache.format.files import kind_of, let_go
from shardcache.format.pages import KEY_BYTES, ShardSeal, Table, damaged

MAX_OPEN = 128  # each costs a file descriptor, of which a process often has 1,024
MAX_TABLE_BYTES = 16 << 20  # 20 bytes a value

Proof = tuple[int, str, int]


class _Mapped:
    """A verified file in memory. It is unmapped when nothing refers to it or to a view of it."""

    def __init__(self, fd: int, seal: ShardSeal) -> None:
        self._view = memoryview(mmap.mmap(fd, seal.file_bytes, prot=mmap.PROT_READ))

    def read(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]


class _Descriptor:
    """A verified file that is read piece by piece."""

    def __init__(self, fd: int, seal: ShardSeal) -> None:  # noqa: ARG002
        self._fd = os.dup(fd)

    def read(self, offset: int, size: int, name: str) -> memoryview:
        data = np.empty(size, np.uint8).data
        pages.preadv(self._fd, [data], offset, name)
        return data

    def fill(self, offset: int, outs: Sequence[memoryview], name: str) -> None:
        """Read what begins at ``offset`` into ``outs``, one after the other."""
        pages.preadv(self._fd, outs, offset, name)

    def __del__(self, close: Callable[[int], None] = let_go) -> None:  # bound here: at exit, names go first
        if hasattr(self, "_fd"):
            close(self._fd)


_WAYS: dict[str, type[_Mapped] | type[_Descriptor]] = {"mmap": _Mapped, "pread": _Descriptor}


class Unread:
    """A value that is still in its file (``io="pread"``), to be read in parts, each to where it belongs."""

    __slots__ = ("_file", "_name", "_offset", "_size")

    def __init__(self, file: _Descriptor, offset: int, size: int, name: str) -> None:
        self._file, self._offset, self._size, self._name = file, offset, size, name

    def __len__(self) -> int:
        return self._size

    def fill(self, start: int, *outs: memoryview) -> None:
        """Read what begins at byte ``start`` of the value into ``outs``, one after the other."""
        self._file.fill(self._offset + start, outs, self._name)

    def whole(self) -> memoryview:
        """All of it, in memory of its own."""
        return self._file.read(self._offset, self._size, self._name)


class OpenShard:
    """A file that was verified, and where its values lie."""

    def __init__(self, fd: int, inode: int, seal: ShardSeal, proof: Proof, table: Table, io: str) -> None:
        self.inode, self.proof, self.table_bytes = inode, proof, table.nbytes
        self._keys, self._offsets, self._sizes = table.keys.data, table.offsets.data, table.sizes.data
        self._file = _WAYS[io](fd, seal)

    def find(self, key: bytes, name: str) -> memoryview | Unread | None:
        """The value of a key, in the map or still to be read; None where there is none."""
        number = int.from_bytes(key, "big") if len(key) == KEY_BYTES else -1
        place = bisect_left(self._keys, number)
        if place == len(self._keys) or self._keys[place] != number:
            return None
        offset, size = self._offsets[place], self._sizes[place]
        if isinstance(self._file, _Mapped):
            return self._file.read(offset, size)
        return Unread(self._file, offset, size, name)


class _OpenShards:
    """All that this process keeps open, the longest unused first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int, str], OpenShard] = OrderedDict()
        self._table_bytes = 0
        self._renew_locks()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_locks)  # a thread that is no more may have held one

    def _renew_locks(self) -> None:
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # one at a time: threads that want the same shard find it open

    def acquire(self, file: "ShardFile") -> OpenShard:
        """The open, verified file."""
        try:
            status = os.stat(file.target, dir_fd=file.dir_fd, follow_symlinks=False)
        except OSError as error:
            raise unreadable(file.path, file.name, error) from error
        found = self._find(status, file)
        if found is None:
            with self._opening:
                found = self._open(file)
        return found

    def close_all(self) -> None:
        """Keep nothing open that nobody uses."""
        with self._lock:
            self._kept.clear()
            self._table_bytes = 0

    def _find(self, status: os.stat_result, file: "ShardFile") -> OpenShard | None:
        inode = status.st_dev, status.st_ino, file.io
        with self._lock:
            found = self._kept.get(inode)
            if found is None or found.proof != _proof(status, file.seal) or status.st_size != file.seal.file_bytes:
                return None
            self._kept.move_to_end(inode)
            return found

    def _open(self, file: "ShardFile") -> OpenShard:
        seal, name = file.seal, file.name
        fd, status = open_file(file)
        try:
            found = self._find(status, file)  # another thread has opened it in the meantime
            if found is None:
                table = pages.table(fd, seal, name)
                found = OpenShard(fd, status.st_ino, seal, _proof(status, seal), table, file.io)
                self._keep((status.st_dev, status.st_ino, file.io), found)
            return found
        except ValueError as error:  # the map would be longer than the file
            raise damaged(name, f"was truncated while it was being opened: {error}") from error
        except OSError as error:
            raise unreadable(file.path, name, error) from error
        finally:
            let_go(fd)

    def _keep(self, inode: tuple[int, int, str], opened: OpenShard) -> None:
        with self._lock:
            before = self._kept.pop(inode, None)
            self._table_bytes += opened.table_bytes - (before.table_bytes if before else 0)
            self._kept[inode] = opened
            while len(self._kept) > MAX_OPEN or (self._table_bytes > MAX_TABLE_BYTES and len(self._kept) > 1):
                _, unused = self._kept.popitem(last=False)
                self._table_bytes -= unused.table_bytes


_shards = _OpenShards()
close_all = _shards.close_all


@dataclass(frozen=True, slots=True)
class ShardFile:
    """Where a shard lies and what it must be; ``name`` stands for it in messages, as "shard 00012".

    With ``dir_fd`` it is the file of that name in the directory that this descriptor has open, wherever it is now.
    """

    path: Path
    seal: ShardSeal
    name: str
    io: str = "mmap"
    dir_fd: int | None = None
    target: str = field(init=False, repr=False)  # what the operating system is asked for

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", str(self.path) if self.dir_fd is None else self.path.name)

    def lease(self) -> "ShardReader":
        """To read from within a ``with`` block. Leases are cheap, may be nested, and held by many threads at once.

        On entering:

        Raises:
            MissingShardError: there is no file at ``path``.
            DamagedShardError: it is not the file that ``seal`` describes.
            StorageError: the operating system refused (no permission, too many open files, no memory).
        """
        return ShardReader(self)

    def is_still(self, opened: OpenShard) -> bool:
        """Whether the file is there, and the one that was opened and verified."""
        try:
            status = os.stat(self.target, dir_fd=self.dir_fd, follow_symlinks=False)
        except OSError:
            return False
        return status.st_ino == opened.inode and _proof(status, self.seal) == opened.proof


class ShardReader:
    """A lease on a shard, made by :meth:`ShardFile.lease`.

    What ``get`` returns with ``io="mmap"`` lies in the mapped file itself, which stays mapped as long as the view, or
    anything made of it, lives. With ``io="pread"`` it is memory of its own.
    """

    __slots__ = ("_file", "_opened")

    def __init__(self, file: ShardFile) -> None:
        self._file = file
        self._opened: OpenShard | None = None

    def __enter__(self) -> Self:
        if self._opened is not None:
            raise UsageError(f"{self._file.name}: this lease is held already; lease() gives another one")
        self._opened = _shards.acquire(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._opened = None

    @property
    def opened(self) -> OpenShard:
        """What the lease is on."""
        if self._opened is None:
            raise UsageError(f"{self._file.name}: can be read only within its lease")
        return self._opened

    def get(self, key: bytes) -> memoryview:
        """The value of a key: read-only bytes.

        Raises:
            DamagedShardError: there is none, or it cannot be read.
            UsageError: the lease has ended.
        """
        value = self.find(key)
        return value.whole() if isinstance(value, Unread) else value

    def find(self, key: bytes) -> memoryview | Unread:
        """As ``get``; but with ``io="pread"`` nothing is read yet."""
        if self._opened is None:
            raise UsageError(f"{self._file.name}: can be read only within its lease")
        value = self._opened.find(key, self._file.name)
        if value is None:
            raise no_value(self._file.name, key)
        return value


def open_file(file: ShardFile) -> tuple[int, os.stat_result]:
    """A descriptor of a file that is a regular one and has the right size; nothing more is known of it.

    Raises:
        MissingShardError, DamagedShardError, StorageError: as a lease.
    """
    # Without O_NONBLOCK, a named pipe that was put there just now would make this wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        _check(os.stat(file.target, dir_fd=file.dir_fd, follow_symlinks=False), file)
        fd = os.open(file.target, flags, dir_fd=file.dir_fd)
        try:
            status = os.fstat(fd)
            _check(status, file)
        except BaseException:
            let_go(fd)
            raise
    except OSError as error:
        raise unreadable(file.path, file.name, error) from error
    return fd, status


def unreadable(path: Path, name: str, error: OSError) -> ShardCacheError:
    """What to raise where the operating system refuses a file."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingShardError(f"{name}: must be the file {path}, which does not exist")
    reason = error.strerror or str(error)
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.EIO, errno.ESTALE):
        return damaged(name, f"cannot be opened: {reason}")
    return StorageError(f"{name}: {path} cannot be opened: {reason}")


def no_value(name: str, key: bytes) -> ShardCacheError:
    """What to raise where a shard has no value of a key."""
    return damaged(name, f"must have a value of key {key.hex()}, has none")


def _check(status: os.stat_result, file: ShardFile) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise damaged(file.name, f"must be a regular file, is {kind_of(status.st_mode)}")
    if status.st_size != file.seal.file_bytes:
        raise damaged(file.name, f"must have {file.seal.file_bytes} bytes, has {status.st_size}")


def _proof(status: os.stat_result, seal: ShardSeal) -> Proof:
    """What is known of a file once it was verified: its size, its structure, and when it was last modified."""
    return status.st_size, seal.structure, status.st_mtime_ns
