"""``finish``: the parts of a build -> the published cache."""

import calendar
import os
import time
from operator import itemgetter
from pathlib import Path

import msgspec

from shardcache.builder.parts import described, parts_in
from shardcache.builder.shards import ShardRecord
from shardcache.builder.staging import Staging
from shardcache.builder.target import check, is_taken, target_of
from shardcache.errors import BuildError, CacheNotFoundError, DamagedShardError
from shardcache.format import pages, provenance, spec
from shardcache.format.files import let_go, storage_errors
from shardcache.format.provenance import Provenance
from shardcache.read.cache import Cache
from shardcache.read.cache import open as open_cache


def finish(path: str | os.PathLike[str], *, if_exists: str = "error") -> Cache:
    """Publish a cache whose parts are built (``build(..., part=(k, n))``); the dataset is not needed.

    Every shard must be there, and have the length and the structure that its part wrote down. Where ``path`` was
    finished before, it is opened.

    Args:
        path: the directory that the parts were given.
        if_exists: what is done with a cache that is at ``path`` while parts of a new one are there too: ``"error"``,
            ``"open"`` or ``"replace"``.

    Returns:
        The open cache.

    Raises:
        BuildError: shards are missing or damaged; the message names them and their parts, which are to be built again.
        BuildInProgressError: a part is still being built.
        CacheNotFoundError: there is neither a cache nor a part of one.
        CacheExistsError: something is at ``path``.
    """
    check(if_exists)
    target = target_of(path)
    partial = target.with_name(target.name + ".partial")
    if not partial.exists():
        return _finished(target)
    if is_taken(target, if_exists):
        return open_cache(target)
    with Staging(target) as staging:
        plan, records = staging.found()
        if plan is None:
            return _finished(target)
        if not plan.samples:
            raise BuildError(f"{target}: is not built in parts, but in one pass; the same 'build' continues it")
        with storage_errors(staging.directory):
            damaged = [record.number for record in records.values() if not _is_sound(staging.directory, record)]
            for number in damaged:
                staging.forget(number)
            missing = [number for number in range(plan.shard_count) if number not in records or number in damaged]
            if missing:
                raise BuildError(
                    f"{target}: {len(missing)} of {plan.shard_count} shards are not there (or not whole): "
                    f"{described(missing, plan, parts_in(staging.directory))}; build these again, then finish"
                )
            origin = _provenance(staging.directory)
        staging.publish(plan, records, origin, replace=if_exists == "replace")
    return open_cache(target)


def _finished(target: Path) -> Cache:
    """The cache that somebody else has finished."""
    if not (target / spec.MANIFEST_NAME).is_file():
        raise CacheNotFoundError(
            f"{target}: no part of a cache was built here; 'shardcache build --part 1/N --out {target}' builds one"
        )
    return open_cache(target)


def _is_sound(directory: Path, record: ShardRecord) -> bool:
    """Whether a shard has the length and the structure that its record says."""
    name = spec.shard_name(record.number)
    descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return pages.structure(descriptor, record.seal.file_bytes, name) == record.seal.structure
    except DamagedShardError:
        return False
    finally:
        let_go(descriptor)


def _provenance(directory: Path) -> Provenance | None:
    """That of the part which began first, for the whole: from then on until now."""
    noted = [provenance.read(directory, file.name) for file in directory.glob("part-*-of-*.json")]
    began = [(seconds, part) for part in noted if part is not None and (seconds := _began(part)) is not None]
    if not began:
        return None
    seconds, first = min(began, key=itemgetter(0))
    return msgspec.structs.replace(
        first, built=time.strftime(provenance.TIME, time.gmtime()), seconds=round(time.time() - seconds, 3)
    )


def _began(part: Provenance) -> int | None:
    """When a part was noted, as ``time.time()``; None where what is written there is no time."""
    try:
        return calendar.timegm(time.strptime(part.built, provenance.TIME))
    except ValueError:
        return None
