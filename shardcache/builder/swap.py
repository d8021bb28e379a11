"""The moment at which a directory becomes the cache, and what becomes of the one that was there."""

import ctypes
import errno
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from shardcache.errors import CacheExistsError
from shardcache.read.hold import REPLACED, Hold, is_held, replaced

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD


def put_in_place(directory: Path, target: Path, replace: bool) -> None:
    """Rename a directory to ``target``, in place of a cache that may be replaced.

    Raises:
        CacheExistsError: something is there that may not.
        OSError: it cannot be renamed; what was there still is.
    """
    taken = target.exists() and any(target.iterdir())
    if taken and not replace:
        raise CacheExistsError(f"{target}: something appeared here while the cache was built")
    if taken:
        _replace(directory, target)
        return
    if target.exists():
        target.rmdir()
    directory.rename(target)


def discard(directory: Path) -> None:
    """Delete what nobody needs, as much of it as the file system lets go."""
    with suppress(OSError):  # not even with ignore_errors does it ignore all of them
        shutil.rmtree(directory, ignore_errors=True)


def sweep(target: Path) -> None:
    """Delete what was replaced at a path, but for what somebody still reads."""
    for old in replaced(target):
        if not is_held(old):
            discard(old)


def _replace(directory: Path, target: Path) -> None:
    """Under a name that is swept, a crash before the exchange leaves the old cache, and one after it the new one."""
    new, old = (target.with_name(f"{target.name}{REPLACED}{secrets.token_hex(4)}") for _ in range(2))
    held = Hold(directory)  # others who sweep leave it alone
    directory.rename(new)
    try:
        if not exchange(new, target):
            target.rename(old)
            try:
                new.rename(target)
            except OSError:
                old.rename(target)
                raise
    except OSError:
        new.rename(directory)
        raise
    del held
    sweep(target)


def exchange(one: Path, other: Path) -> bool:
    """Two directories change places, at no moment is there none; False where the system cannot do it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux's
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
