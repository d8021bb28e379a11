"""A shard: one LMDB file. The only module that imports lmdb; every error of lmdb's leaves it as one of ours.

**Writing** is one pass over ascending keys, in commits of a fixed size: the same puts give the same bytes, on any day
and in any process (given the version of LMDB and its pages, which are as large as the operating system's).

**Reading** goes through leases: :mod:`shardcache.format.leases` says what is checked, how many files are open, and what
happens in a fork. A value is handed out as a view of the mapped file, without a copy.
"""

import errno
import mmap
import os
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb
import numpy as np

from shardcache.errors import CacheExistsError, DamagedShardError, ShardCacheError, StorageError, UsageError
from shardcache.format import pages
from shardcache.format.leases import Entry, Memory, Registry, unreadable
from shardcache.format.pages import KEY_BYTES, ShardSeal, damaged

__all__ = ["ShardReader", "ShardSeal", "ShardWriter", "close_all", "lease", "library_version", "page_bytes"]

MAP_BYTES = 1 << 40  # of the format: LMDB writes it into the file. Far above any shard; it costs addresses only.
COMMIT_BYTES = 16 << 20  # of the format: it decides which pages are written twice. A transaction is held in memory.
LIB_VERSION = 0  # of the format: LMDB 0.9's files. LMDB 1.0 writes others.
MAX_VALUE_BYTES = 2**32 - 1  # LMDB keeps the size of a value in 32 bits
# No lock file: a shard is written by one process and then never changed, and one that is left behind makes later opens
# fail. meminit stays on: without it, memory that nobody wrote gets into the file.
OPTIONS: dict[str, Any] = {"subdir": False, "lock": False, "lib_version": LIB_VERSION}


def library_version() -> str:
    """The version of LMDB that writes, as "0.9.33"."""
    return ".".join(map(str, lmdb.version(lib_version=LIB_VERSION)))


def page_bytes() -> int:
    """How large LMDB makes its pages on this machine."""
    return min(mmap.PAGESIZE, pages.MAX_PAGE_BYTES)


class ShardWriter:
    """Writes a new shard at ``path``. As a context manager it removes the file again unless ``finish`` was reached.

    Nothing is flushed to the disk before ``finish``. For one thread.

    Raises:
        CacheExistsError: there is a file at ``path``.
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_key = b""
        self._pending = 0
        self._fd = -1
        self._env: lmdb.Environment | None = None
        self._txn: lmdb.Transaction[bytes] | None = None
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            # Not synchronised: what a crash leaves of an unfinished shard is never read, and ``finish`` calls fsync.
            self._env = lmdb.open(_alias(self._fd, path), map_size=MAP_BYTES, sync=False, metasync=False, **OPTIONS)
            self._txn = self._env.begin(write=True)
        except FileExistsError:
            raise CacheExistsError(f"{path}: must not exist, is there already") from None
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.abort()

    def put(self, key: bytes, value: bytes | bytearray | memoryview) -> None:
        """Add a value under a key of 8 bytes that is higher than all before.

        Raises:
            UsageError: the key is not that, or the writer has finished.
            StorageError: the value is longer than ``MAX_VALUE_BYTES``, or the file system refused it.
        """
        env, txn = self._open()
        if len(key) != KEY_BYTES or key <= self._last_key:
            last = self._last_key.hex() or "nothing"
            raise UsageError(f"{self._path}: key {key.hex()} must have {KEY_BYTES} bytes and be above {last}")
        size = memoryview(value).nbytes
        if size > MAX_VALUE_BYTES:
            raise StorageError(f"{self._path}: a value must have at most {MAX_VALUE_BYTES} bytes, has {size}")
        try:
            txn.put(key, value, append=True)
            self._last_key = key
            self._pending += size
            if self._pending >= COMMIT_BYTES:
                txn.commit()
                self._txn, self._pending = env.begin(write=True), 0
        except lmdb.Error as error:
            raise self._failed(error) from error

    def finish(self) -> ShardSeal:
        """Write what is left, flush the file to the disk, and read it once to say what it is.

        Raises:
            UsageError: the writer has finished.
            StorageError: the file system refused, or what is read back is not a sound shard.
        """
        _, txn = self._open()
        try:
            txn.commit()
            self._close_environment()
            os.fsync(self._fd)
            seal = pages.seal(self._fd, str(self._path))
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error
        except DamagedShardError as error:
            self.abort()
            raise StorageError(f"{self._path}: the disk does not hold what was written to it: {error}") from error
        os.close(self._fd)
        self._fd = -1
        return seal

    def abort(self) -> None:
        """Close and remove the file, unless ``finish`` was reached. Calling it again does nothing."""
        with suppress(lmdb.Error):
            self._close_environment()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(OSError):
                self._path.unlink()

    def _open(self) -> "tuple[lmdb.Environment, lmdb.Transaction[bytes]]":
        if self._env is None or self._txn is None:
            raise UsageError(f"{self._path}: this shard is closed, nothing can be added")
        return self._env, self._txn

    def _close_environment(self) -> None:
        txn, env, self._txn, self._env = self._txn, self._env, None, None
        if txn is not None:
            txn.abort()  # nothing, after a commit
        if env is not None:
            env.close()

    def _failed(self, error: "OSError | lmdb.Error") -> StorageError:
        """Remove the file; the error to raise."""
        code, free = _code(error), 0
        with suppress(OSError):
            free = shutil.disk_usage(self._path.parent).free
        # LMDB says EIO where the disk had room for a part of what was to be written.
        full = code in (errno.ENOSPC, errno.EDQUOT) or (code == errno.EIO and free < self._pending + COMMIT_BYTES // 16)
        self.abort()
        if full:
            return StorageError(f"{self._path}: disk full ({free} bytes were free)")
        return StorageError(f"{self._path}: cannot be written: {os.strerror(code) if code > 0 else error}")


class _Environment:
    """A file that LMDB has mapped, with its read transactions. Each transaction is one lease's at a time."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env
        # Kept, since beginning one costs as much as reading a value. The file does not change, so none gets old.
        self._idle: list[lmdb.Transaction[memoryview]] = []

    def begin(self, name: str) -> "lmdb.Transaction[memoryview]":
        try:
            return self._idle.pop() if self._idle else self._env.begin(buffers=True)
        except IndexError:  # another thread has just taken the last one
            return self.begin(name)
        except lmdb.Error as error:
            raise damaged(name, f"cannot be read: {error}") from error

    def end(self, txn: "lmdb.Transaction[memoryview]") -> None:
        self._idle.append(txn)

    def close(self) -> None:
        self._env.close()  # before the transactions go: in a forked child, dropping one alone would not free it
        self._idle.clear()


def _open_environment(fd: int, path: Path, seal: ShardSeal, name: str) -> _Environment:
    """Give a verified file to LMDB. The map is as long as the file: 128 of MAP_BYTES would fill the address space."""
    try:
        env = lmdb.open(_alias(fd, path), map_size=seal.file_bytes, readonly=True, create=False, **OPTIONS)
        same = os.path.samestat(os.fstat(fd), Path(os.fsdecode(_alias(fd, path))).stat())
    except (lmdb.Error, OSError) as error:
        raise unreadable(path, name, _code(error), str(error)) from error
    if not same:
        env.close()
        raise damaged(name, "was replaced while it was being opened")
    return _Environment(env)


_registry = Registry(_open_environment)
close_all = _registry.close_all


def lease(path: Path, seal: ShardSeal, name: str) -> "ShardReader":
    """A shard to read from within a ``with`` block; ``name`` stands for it in messages, as "shard 00012".

    Leases are cheap, may be nested, and may be held by many threads at once; each lease is for one thread. On entering:

    Raises:
        MissingShardError: there is no file at ``path``.
        DamagedShardError: it is not the file that ``seal`` describes.
        StorageError: the operating system refused (no permission, too many open files, no memory).
    """
    return ShardReader(path, seal, name)


class ShardReader:
    """A lease on a shard, made by :func:`lease`.

    What ``get`` returns lies in the mapped file itself. It is released when the lease ends; using it then is a
    ValueError. A slice of it, or an array made of it, cannot be taken back: as long as one lives the file stays mapped,
    so it can be read safely, but the file stays open, beyond ``MAX_OPEN`` if need be. Copy what you keep.
    """

    __slots__ = ("_entry", "_handed", "_name", "_path", "_seal", "_txn")

    def __init__(self, path: Path, seal: ShardSeal, name: str) -> None:
        self._path, self._seal, self._name = path, seal, name
        self._entry: Entry[_Environment] | None = None
        self._txn: lmdb.Transaction[memoryview] | None = None
        self._handed: list[tuple[memoryview, Memory]] = []

    def __enter__(self) -> Self:
        if self._entry is not None:
            raise UsageError(f"{self._name}: this lease is held already; lease() gives another one")
        entry = _registry.acquire(self._path, self._seal, self._name)
        try:
            assert entry.environment is not None  # acquire has seen to it
            self._txn = entry.environment.begin(self._name)
        except ShardCacheError:
            _registry.release(entry)
            raise
        self._entry = entry
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        entry, txn, handed = self._entry, self._txn, self._handed
        self._entry, self._txn, self._handed = None, None, []
        if entry is None or txn is None or entry.environment is None:
            return
        entry.environment.end(txn)
        _registry.release(entry, [memory for view, memory in handed if not _released(view, memory)])

    def get(self, key: bytes) -> memoryview:
        """The value of a key: read-only bytes, valid until the lease ends.

        Raises:
            DamagedShardError: there is none, or LMDB cannot read it.
            UsageError: the lease has ended.
        """
        txn, entry = self._txn, self._entry
        if txn is None or entry is None or entry.environment is None:
            raise UsageError(f"{self._name}: can be read only within its lease")
        try:
            value = txn.get(key)
        except lmdb.Error as error:
            self._txn = entry.environment.begin(self._name)  # the error has spoiled the old one
            raise damaged(self._name, f"the value of key {key.hex()} cannot be read: {error}") from error
        if value is None:
            raise damaged(self._name, f"must have a value of key {key.hex()}, has none")
        if not value:
            return value
        # An array, because its life tells whether a slice of the view outlives the lease; nothing else does.
        memory = np.frombuffer(value, np.uint8)
        view = memory.data
        self._handed.append((view, weakref.ref(memory)))
        return view


def _released(view: memoryview, memory: Memory) -> bool:
    """Take a view back; False where something that was made of it is still there."""
    try:
        view.release()
    except BufferError:
        return False
    return memory() is None


def _alias(fd: int, path: Path) -> str | bytes:
    """What to give to LMDB so that it opens the very file of ``fd``, whatever stands at its path by then.

    Without /proc it is the path: in bytes, since LMDB refuses a str with what the file system's encoding cannot say.
    """
    alias = f"/proc/self/fd/{fd}"
    return alias if Path(alias).exists() else os.fsencode(path)


def _code(error: "OSError | lmdb.Error") -> int:
    """The errno of an error; negative for one of LMDB's own kinds, 0 where there is none."""
    return (error.errno if isinstance(error, OSError) else getattr(error, "code", 0)) or 0
