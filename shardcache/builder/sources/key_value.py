"""LMDB files that other projects wrote. The only module beside the shards' that imports lmdb: it only reads.

Such a file is opened without its lock, so that nothing is written beside it and read-only media will do.
"""

import os
import weakref
from pathlib import Path
from typing import Any

import lmdb

from shardcache.errors import SourceError

_MAX_DATABASES = 32  # that are open at once
_DATABASE_BYTES = 48  # of an entry that stands for a database


class LMDB:
    """The entries of an LMDB that another program made: ``{"key": bytes, "value": bytes}``, in the order of the keys.

    Nobody may write to it meanwhile: it is read without a lock. The keys are held in memory.

    Args:
        path: the file, or the folder with ``data.mdb`` in it.
        database: the name of one of its databases; default: the main one.

    Raises:
        SourceError: it is not there or no LMDB, or has no such database.
    """

    def __init__(self, path: str | os.PathLike[str], database: str | None = None) -> None:
        self.path, self.database = Path(path), database
        self._environment = _shared(self.path)
        try:
            with self._environment.begin(database) as txn, txn.cursor() as cursor:
                self._keys = list(cursor.iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise SourceError(f"{self.path}: cannot be read: {error}") from error

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.database)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        key = self._keys[index]
        try:
            with self._environment.begin(self.database) as txn:
                value = txn.get(key)
        except lmdb.Error as error:
            raise SourceError(f"{self.path}, key {key!r}: cannot be read: {error}") from error
        if value is None:
            raise SourceError(f"{self.path}, key {key!r}: was there, is gone; somebody writes to the file")
        if self.database is None and len(value) == _DATABASE_BYTES and self._environment.is_database(key):
            raise SourceError(f"{self.path}, key {key!r}: is a database; database={os.fsdecode(key)!r} reads it")
        return {"key": key, "value": value}


class _Environment:
    """An LMDB that is open in this process: LMDB allows each file once."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._databases: dict[str | None, Any] = {}
        self._env: Any = lmdb.open(
            self._file, subdir=False, readonly=True, create=False, lock=False, readahead=False, max_dbs=_MAX_DATABASES
        )

    def begin(self, name: str | None) -> Any:
        """A transaction that reads a database; None is the main one."""
        if self._pid != os.getpid():  # what a fork inherited is the parent's
            self._env.close()
            self._open()
        if name is not None and name not in self._databases:
            self._databases[name] = self._env.open_db(os.fsencode(name), create=False)
        return self._env.begin(db=self._databases.get(name))

    def is_database(self, key: bytes) -> bool:
        """Whether an entry of the main database stands for a database, which its bytes do not say."""
        try:
            self._env.open_db(key, create=False)
        except lmdb.Error:
            return False
        return True


_environments: weakref.WeakValueDictionary[str, _Environment] = weakref.WeakValueDictionary()


def _shared(path: Path) -> _Environment:
    file = os.path.realpath(path / "data.mdb" if path.is_dir() else path)
    found = _environments.get(file)
    if found is None:
        try:
            _environments[file] = found = _Environment(file)
        except lmdb.Error as error:
            raise SourceError(f"{path}: cannot be opened as an LMDB: {error}") from error
    return found
