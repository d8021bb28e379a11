"""Where a cache comes from: ``provenance.json``, a remark for people. Nothing depends on it.

It is no part of the cache that the digest names: the same bytes may be made twice, on other days and machines. So it is
never trusted either: what is not as expected is taken for absent, and whoever shows it escapes it.
"""

import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from shardcache.format import spec

_MAX_BYTES = 1 << 16


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """When (UTC) and in how long, by which factory and versions, from which commit, on which type of machine."""

    built: str
    seconds: float
    factory: str
    versions: dict[str, str]
    machine: str
    commit: str | None = None
    is_dirty: bool | None = None


def read(directory: Path) -> Provenance | None:
    """What was written down beside a cache; None where that is not there, or is not what was written."""
    try:
        fd = os.open(directory / spec.PROVENANCE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.read(fd, _MAX_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
        return msgspec.json.decode(data, type=Provenance)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def as_dict(directory: Path) -> dict[str, Any] | None:
    """The same as plain values."""
    found = read(directory)
    return None if found is None else msgspec.structs.asdict(found)
