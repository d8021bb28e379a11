"""Writing a shard: one LMDB file. The only module that imports lmdb; every error of lmdb's leaves it as one of ours.

It is one pass over ascending keys, in commits of a fixed size: the same puts give the same bytes, on any day and in any
process (given the version of LMDB and its pages, which are as large as the operating system's). What reads a shard is
:mod:`shardcache.format.leases`, without lmdb.
"""

import errno
import mmap
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from shardcache.errors import CacheExistsError, DamagedShardError, StorageError, UsageError
from shardcache.format import pages
from shardcache.format.pages import KEY_BYTES, ShardSeal

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

    Nothing is flushed to the disk before ``finish``. For one thread at a time.

    Raises:
        CacheExistsError: there is a file at ``path``.
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_key = b""
        self._pending = 0
        self._fd = -1
        self._is_made = False  # and not finished: whoever ends here removes the file
        self._env: lmdb.Environment | None = None
        self._txn: lmdb.Transaction[bytes] | None = None
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            self._is_made = True
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

    def close(self) -> None:
        """Write what is left: nothing can be added any more, and another thread may call ``finish``.

        Raises:
            UsageError: the writer was closed before.
            StorageError: the file system refused.
        """
        _, txn = self._open()
        try:
            txn.commit()
            self._close_environment()
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error

    def finish(self) -> ShardSeal:
        """Close, flush the file to the disk, and read it once to say what it is.

        Raises:
            UsageError: the writer has finished.
            StorageError: the file system refused, or what is read back is not a sound shard.
        """
        if self._env is not None or self._fd < 0:
            self.close()
        try:
            os.fsync(self._fd)
            seal = pages.seal(self._fd, str(self._path))
            self._close()
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error
        except DamagedShardError as error:
            self.abort()
            raise StorageError(f"{self._path}: the disk does not hold what was written to it: {error}") from error
        self._is_made = False
        return seal

    def abort(self) -> None:
        """Close and remove the file, unless ``finish`` was reached. Calling it again does nothing."""
        with suppress(lmdb.Error):
            self._close_environment()
        with suppress(OSError):
            self._close()
        if self._is_made:
            self._is_made = False
            with suppress(OSError):
                self._path.unlink()

    def _close(self) -> None:
        """Once only, even where that fails: some file systems say no sooner that they could not write."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

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


def _alias(fd: int, path: Path) -> str | bytes:
    """What to give to LMDB so that it opens the very file of ``fd``, whatever stands at its path by then.

    Without /proc it is the path: in bytes, since LMDB refuses a str with what the file system's encoding cannot say.
    """
    alias = f"/proc/self/fd/{fd}"
    return alias if Path(alias).exists() else os.fsencode(path)


def _code(error: "OSError | lmdb.Error") -> int:
    """The errno of an error; negative for one of LMDB's own kinds, 0 where there is none."""
    return (error.errno if isinstance(error, OSError) else getattr(error, "code", 0)) or 0
