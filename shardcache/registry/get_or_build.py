"""``get_or_build``: the cache of this fingerprint, from whoever builds it first."""

import json
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import msgspec

from shardcache.builder.build import build
from shardcache.builder.progress import Events
from shardcache.builder.source import Recipe
from shardcache.builder.staging import progress_of, storage_errors
from shardcache.errors import CacheMissError, StaleCacheError, UsageError
from shardcache.read.cache import Cache
from shardcache.read.cache import open as open_cache
from shardcache.registry import spotcheck
from shardcache.registry.explain import changed_since, differences
from shardcache.registry.fingerprint import Fingerprint, decisive, discover, fingerprint
from shardcache.registry.store import Entry, Slot, root_of, slot_of, slots

_POLL_S = 0.2
_SAY_EVERY_S = 10.0
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
    root = root_of(cache_dir, allow_shared=allow_shared)
    made_of = fingerprint(
        factory, kwargs, version=version, deps=deps, data_check=data_check, options=decisive(build_options)
    )
    slot = slot_of(root, name, made_of.key)
    before = _stamp(slot)  # before the look whether it can be used: it may be published, and not yet entered
    if not rebuild and (cache := _reusable(slot)) is not None:
        try:
            spotcheck.check(cache, factory, kwargs, 0 if allow_random else spot_check)
        except StaleCacheError:
            if on_stale == "error":
                raise
            rebuild = True
        else:
            return cache
    if on_miss == "error" and not rebuild:
        raise CacheMissError(_miss(root, name, made_of, factory, kwargs or {}))
    options = {**build_options, "allow_random": allow_random, "progress": progress}
    return _built(slot, before, Entry(name, _target(factory), made_of), factory, kwargs, data_check, options)


def _check(on_miss: str, on_stale: str, spot_check: int, build_options: Mapping[str, Any]) -> None:
    if on_miss not in ("build", "error"):
        raise UsageError(f"on_miss must be 'build' or 'error', was {on_miss!r}")
    if on_stale not in ("error", "rebuild"):
        raise UsageError(f"on_stale must be 'error' or 'rebuild', was {on_stale!r}")
    if type(spot_check) is not int or spot_check < 0:
        raise UsageError(f"spot_check must be 0 or more, was {spot_check!r}")
    for option in _NOT_OURS:
        if option in build_options:
            raise UsageError(
                f"{option}= is not for get_or_build, which says itself where and what; rebuild=True builds anew"
            )


def _reusable(slot: Slot) -> Cache | None:
    """The published cache, unless files that its dataset turned out to use have changed since."""
    entry = slot.entry()
    if entry is None or not slot.is_published:
        return None
    if changed_since(entry):
        return None
    cache = open_cache(slot.path)
    slot.mark_used()
    return cache


def _built(
    slot: Slot,
    before: int | None,
    entry: Entry,
    factory: Any,
    kwargs: Mapping[str, Any] | None,
    data_check: str,
    options: Mapping[str, Any],
) -> Cache:
    """Build it, or wait for who does and open what comes out."""
    with storage_errors(slot.folder):
        slot.folder.mkdir(mode=0o700, exist_ok=True)
    with _locked(slot, options["progress"] is True):
        if _stamp(slot) != before and (cache := _reusable(slot)) is not None:
            return cache  # somebody else has built it in the meantime
        dataset = Recipe(factory, kwargs)()
        discovered = discover(dataset, entry.fingerprint.data.values(), data_check)
        source, arguments = (dataset, None) if _is_fork_used() else (factory, kwargs)
        replace = "replace" if slot.path.exists() else "error"
        cache = build(source, slot.path, kwargs=arguments, if_exists=replace, **options)
        slot.write_entry(msgspec.structs.replace(entry, discovered=discovered))
    slot.mark_used()
    return cache


@contextmanager
def _locked(slot: Slot, shown: bool) -> Iterator[None]:
    """The right to build; whoever waits for it says how far the other one is."""
    lock, said = slot.lock(), time.monotonic()
    while True:
        with storage_errors(slot.folder), suppress(filelock.Timeout):
            lock.acquire(timeout=_POLL_S)
            break
        if shown and time.monotonic() - said > _SAY_EVERY_S:
            said, progress = time.monotonic(), progress_of(slot.path)
            far = f"{progress[0]} of {progress[1] or 'some'} shards" if progress else "at its beginning"
            sys.stderr.write(f"waiting for another process that builds {slot.name!r}: {far}\n")
    try:
        yield
    finally:
        lock.release()


def _is_fork_used() -> bool:
    """Whether workers inherit what this process has made. Asking must not decide it."""
    return (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"


def _stamp(slot: Slot) -> int | None:
    """Which cache is published there."""
    try:
        return slot.path.stat().st_ino
    except OSError:
        return None


def _target(factory: Any) -> str:
    """What a person would write for the factory."""
    if isinstance(factory, str):
        return factory
    return f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', type(factory).__qualname__)}"


def _miss(root: Path, name: str, made_of: Fingerprint, factory: Any, kwargs: Mapping[str, Any]) -> str:
    """What differs from the caches of this name, and how to build this one."""
    others = [(slot, entry) for slot in slots(root, name) if (entry := slot.entry()) is not None and slot.is_published]
    if others:
        slot, entry = others[0]
        found = differences(entry.fingerprint, made_of) or ["files that its dataset uses have changed since"]
        what = f"the last used one, {slot.key[:12]}, differs: " + "; ".join(text.splitlines()[0] for text in found)
    else:
        what = f"there is no cache of this name in {root}"
    arguments = "".join(f" --arg {shlex.quote(f'{key}={_as_json(value)}')}" for key, value in kwargs.items())
    return (
        f"no cache {name!r} of this fingerprint ({made_of.key[:12]}): {what}. "
        f"To build it: shardcache build {_target(factory)}{arguments} --name {name}"
    )


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
