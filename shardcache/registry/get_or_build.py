"""``get_or_build``: the cache of this fingerprint, from whoever builds it first."""

import inspect
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from shardcache.builder.build import build
from shardcache.builder.progress import Events
from shardcache.builder.source import Recipe
from shardcache.errors import (
    BuildInProgressError,
    CacheMissError,
    CacheNotFoundError,
    ManifestError,
    ShardCacheWarning,
    StaleCacheError,
    UsageError,
)
from shardcache.format import spec
from shardcache.format.files import storage_errors
from shardcache.read.cache import Cache
from shardcache.read.cache import open as open_cache
from shardcache.registry import spotcheck
from shardcache.registry.asked import Asked
from shardcache.registry.data import difference
from shardcache.registry.discover import discover
from shardcache.registry.explain import changed_since, is_same_but_gone
from shardcache.registry.fingerprint import Fingerprint, listed
from shardcache.registry.job import is_first_of_node, is_job
from shardcache.registry.miss import advice, reason, target_of
from shardcache.registry.source import started
from shardcache.registry.store import Entry, Slot, root_of, slot_of, slots
from shardcache.registry.waiting import Waiting, say

_POLL_S = 0.2
_NOT_OURS = ("if_exists", "path", "dataset", "part")


def get_or_build(
    factory: Any,
    *,
    name: str,
    kwargs: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    version: str | None = None,
    deps: Iterable[Any] = (),
    on_miss: str = "build",
    on_stale: str = "error",
    rebuild: bool = False,
    spot_check: int = 8,
    data_check: str = "mtime",
    allow_shared: bool = False,
    allow_random: bool = False,
    progress: bool | Events = True,
    **build_options: Any,
) -> Cache:
    """The cache of what ``factory`` makes: opened where it was built before, built where it was not.

    Args:
        factory: a callable that makes the dataset (called with ``kwargs``), ``"module:callable"`` or
            ``"file.py:callable"``, or a dataset.
        name: under which experiments share it; caches of several fingerprints may have one name.
        kwargs: the factory's arguments. One that is an existing path (with a separator in it) stands for the files
            there: their names relative to it, sizes and times of modification, wherever it is moved.
        cache_dir: the folder of all caches; default: ``SHARDCACHE_HOME``, else the platform's folder for caches.
        version: stands for the code: with it, source and packages are not compared. Change it when they matter.
        deps: further dependencies: paths of files that the code opens, functions it finds in ways that cannot be
            followed, any plain value.
        on_miss: ``"build"``, or ``"error"``: :class:`~shardcache.CacheMissError` says what differs and how to build.
        on_stale: what a spot check that fails does: ``"error"`` or ``"rebuild"``.
        rebuild: build anew; who reads the old one keeps it.
        spot_check: how many samples of the live dataset a reuse compares with the cache, once a node; 0: none.
        data_check: what tells that a file changed: ``"mtime"`` (with its size) or ``"content"`` (which reads it).
        allow_shared: use a folder that others may write to.
        allow_random: build from a dataset that gives other samples when it is read again; nothing is then compared on
            a reuse.
        progress: show the build, or the progress of who builds it, on standard error.
        build_options: of :func:`~shardcache.build`: ``layout``, ``seed``, ``codec``, ``num_workers``, ...

    Returns:
        The open cache. It cannot be pruned while it, or a process that has it, lives.

    Raises:
        UsageError: something cannot be compared from one process to the next, or an argument is wrong.
        CacheMissError: there is none, with ``on_miss="error"``.
        StaleCacheError: a spot check found a difference.
    """
    _check(on_miss, on_stale, spot_check, build_options)
    options = build_options | ({"allow_random": True} if allow_random else {})
    recipe = Recipe(factory, kwargs)
    given = dict(kwargs or {})
    asked = Asked(name, factory, given, version, listed(deps), data_check, options, cache_dir, allow_shared)
    root = root_of(cache_dir, allow_shared=allow_shared)
    made_of = asked.fingerprint(str(root))
    slot = _slot(root, name, made_of)
    shown = progress is True and is_first_of_node()
    if (cache := _reusable(slot, rebuild)) is not None:
        try:
            if spot_check and not allow_random and is_first_of_node():
                spotcheck.check(cache, recipe, spot_check, shown)
        except StaleCacheError as error:
            if on_stale == "error":
                raise
            _give_up(slot, cache, error)
        else:
            return cache
    elif on_miss == "error" and not rebuild:
        why = reason(root, name, made_of)
        raise CacheMissError(f"no cache {name!r} of this fingerprint ({made_of.key[:12]}): {why}. {advice(asked)}")
    return _Build(asked, root, recipe, shown if isinstance(progress, bool) else progress).run(made_of, rebuild)


def _check(on_miss: str, on_stale: str, spot_check: int, build_options: Mapping[str, Any]) -> None:
    if on_miss not in ("build", "error"):
        raise UsageError(f"on_miss must be 'build' or 'error', was {on_miss!r}")
    if on_stale not in ("error", "rebuild"):
        raise UsageError(f"on_stale must be 'error' or 'rebuild', was {on_stale!r}")
    if type(spot_check) is not int or spot_check < 0:
        raise UsageError(f"spot_check must be 0 or more, was {spot_check!r}")
    for option in build_options:
        if option in _NOT_OURS:
            raise UsageError(
                f"{option}= is not for get_or_build, which says itself where and what; rebuild=True builds anew"
            )
        if option not in inspect.signature(build).parameters:
            raise UsageError(f"{option}= is no option of get_or_build or of build")


def _slot(root: Path, name: str, made_of: Fingerprint) -> Slot:
    """The place of this fingerprint; where its files are gone, that of a cache that was made of them."""
    slot = slot_of(root, name, made_of.key)
    if not slot.is_published:
        for other in slots(root, name):
            entry = other.entry()
            if entry is not None and other.is_published and is_same_but_gone(entry.fingerprint, made_of):
                return other
    return slot


def _reusable(slot: Slot, rebuild: bool) -> Cache | None:
    """The published cache, unless files that its dataset turned out to use have changed since.

    One rank of a job builds anew; for the others, what it published since they began is new.
    """
    entry = slot.entry()
    if entry is None or not slot.is_published:
        return None
    if rebuild and not (is_job() and (slot.made or 0) >= started()):
        return None
    if changed_since(entry, str(slot.folder.parent)):
        return None
    try:
        cache = open_cache(slot.path)
    except CacheNotFoundError:  # it was replaced just now
        return None
    except ManifestError as error:
        raise ManifestError(f"{error}; rebuild=True builds the cache anew") from None
    slot.mark_used()
    return cache


def _give_up(slot: Slot, cache: Cache, error: StaleCacheError) -> None:
    """Have a stale cache built anew: now, or where other ranks have it open already, by the job that comes next."""
    with _turn(slot, Waiting(slot.name, slot.path, shown=False)):
        if slot.is_published and slot.manifest().digest == cache.manifest.digest:  # nobody has built it anew
            slot.forget_entry()
    if is_job():
        raise StaleCacheError(
            f"{error}. It was given up, but other ranks of this job may have it open: start the job again, which "
            "builds it anew"
        ) from None


class _Build:
    """The way to a cache that is not there: wait for who builds it, or build it."""

    def __init__(self, asked: Asked, root: Path, recipe: Recipe, progress: bool | Events) -> None:
        self._asked, self._root, self._recipe = asked, root, recipe
        self._progress, self._shown = progress, progress is True

    def run(self, made_of: Fingerprint, rebuild: bool) -> Cache:
        """What is asked for, built by whoever is first.

        Making the dataset may make files that count (a download, an index): then it is the cache of those.
        """
        for is_settled in (False, True):
            slot = slot_of(self._root, self._asked.name, made_of.key)
            slot.make_folder()
            before = _stamp(slot)
            with _turn(slot, Waiting(slot.name, slot.path, self._shown)):
                if (cache := _reusable(slot, rebuild and _stamp(slot) == before)) is not None:
                    return cache  # somebody else has built it in the meantime
                dataset = self._recipe.prepare()
                now = self._again(made_of)
                if now.key == made_of.key or is_settled:
                    return self._publish(slot, made_of, dataset, rebuild)
            made_of = now
        raise AssertionError

    def _again(self, made_of: Fingerprint) -> Fingerprint:
        """The fingerprint with the files as they are now; code is what was looked at first."""
        now = self._asked.fingerprint(str(self._root))
        return msgspec.structs.replace(made_of, arguments=now.arguments, data=now.data)

    def _publish(self, slot: Slot, made_of: Fingerprint, dataset: Any, rebuild: bool) -> Cache:
        why = "a new one is wanted" if rebuild else reason(self._root, slot.name, made_of)
        say(f"building {slot.name!r} ({made_of.key[:12]}): {why}", self._shown)
        found = discover(dataset, made_of.data.values(), self._asked.data_check, str(self._root))
        entry = Entry(slot.name, target_of(self._asked.factory), made_of, found)
        slot.begin_entry(entry)
        cache = self._build(slot)
        slot.finish_entry()
        slot.mark_used()
        changed = [difference(files, files.again(str(self._root))) for files in made_of.data.values()]
        changed = [text for text in changed if text] + changed_since(entry, str(self._root))
        if changed:
            warnings.warn(
                f"{slot.path}: files changed while it was built, so that it may hold some of either, and the next call "
                f"builds it again: {'; '.join(changed)}",
                ShardCacheWarning,
                stacklevel=5,
            )
        return cache

    def _build(self, slot: Slot) -> Cache:
        waiting = Waiting(slot.name, slot.path, self._shown)
        while True:
            try:
                with storage_errors(slot.path, "looked at"):
                    replace = "replace" if slot.path.exists() else "error"
                options = {**self._asked.options, "progress": self._progress}
                return build(self._recipe, slot.path, if_exists=replace, **options)
            except BuildInProgressError:  # by build(), or by workers of a build that was killed just now
                waiting()
                time.sleep(_POLL_S)
            finally:
                waiting.close()


@contextmanager
def _turn(slot: Slot, waiting: Waiting) -> Iterator[None]:
    """The right to build; whoever waits for it says how far the other one is."""
    lock = slot.lock()
    try:
        while not lock.acquire():
            waiting()
            time.sleep(_POLL_S)
    finally:
        waiting.close()
    try:
        yield
    finally:
        lock.release()


def _stamp(slot: Slot) -> tuple[int, int] | None:
    """Which cache is published there."""
    try:
        status = (slot.path / spec.MANIFEST_NAME).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
