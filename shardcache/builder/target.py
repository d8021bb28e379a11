"""The place that a cache is to have."""

import os
from pathlib import Path

from shardcache.errors import CacheExistsError, UsageError
from shardcache.format import spec
from shardcache.format.files import directory_of, storage_errors


def check(if_exists: str) -> None:
    """:class:`UsageError` where it is none of the three."""
    if if_exists not in ("error", "open", "replace"):
        raise UsageError(f"if_exists must be 'error', 'open' or 'replace', was {if_exists!r}")


def target_of(path: str | os.PathLike[str]) -> Path:
    """Where the cache goes. A link is followed: what it points to is replaced, not the link."""
    target = directory_of(path)
    with storage_errors(target):
        return target.resolve() if target.is_symlink() and target.exists() else target


def is_taken(target: Path, if_exists: str) -> bool:
    """Whether the cache is there and wanted as it is; what may not be touched is an error."""
    check(if_exists)
    with storage_errors(target):
        if not target.exists() and not target.is_symlink():
            return False
        is_cache = (target / spec.MANIFEST_NAME).is_file()
        is_free = target.is_dir() and not any(target.iterdir())
    if is_cache and if_exists != "error":
        return if_exists == "open"
    if not is_free:
        advice = "if_exists='open' or 'replace' says what to do with it" if is_cache else "choose another path"
        raise CacheExistsError(f"{target}: {'a cache' if is_cache else 'something else'} is here already; {advice}")
    return False
