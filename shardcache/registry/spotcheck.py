"""A few rows of the live dataset against the cache, read in a process of their own that ends with the check.

No fingerprint sees everything: a database, a library in C, a file that is opened by a name nobody wrote down. What is
compared is the stored form, so it is exact to the bit, and NaN equals itself.

The process is forked, as the workers of a DataLoader are by default on Linux: a fresh interpreter would take seconds to
import torch, and could not have what a notebook defines. A worker of a pool, to which multiprocessing permits no child,
can have it too. It has no threads of the parent's and must not touch a GPU that the parent uses; a dataset that does is
an error there, hence a check that is skipped with a note.
"""

import json
import os
import random
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

from shardcache.builder.source import Recipe
from shardcache.builder.stream import Stream
from shardcache.errors import ShardCacheWarning, StaleCacheError
from shardcache.format import columns
from shardcache.format.schema import record_kind, splitter
from shardcache.read.cache import Cache
from shardcache.registry.waiting import say

TIMEOUT_S = 300
_SAID_FROM_S = 1.0
_SHOWN = 80


def check(cache: Cache, recipe: Recipe, rows: int, shown: bool = False) -> None:
    """Compare ``rows`` samples, other ones each time.

    Raises:
        StaleCacheError: one differs; the message has its index, the column and both values.
    """
    began = time.perf_counter()
    indices = random.SystemRandom().sample(range(len(cache)), min(rows, len(cache)))
    kind, text = _in_a_child(cache, recipe, indices)
    seconds = time.perf_counter() - began
    if kind == "differs":
        raise StaleCacheError(f"{cache.path}: {text}")
    if kind == "skipped":
        warnings.warn(f"{cache.path}: the spot check was skipped: {text}", ShardCacheWarning, stacklevel=4)
    else:
        advice = "; spot_check= says how many" if seconds > _SAID_FROM_S else ""
        say(
            f"spot check of {cache.path.parent.name!r}: {len(indices)} samples in {seconds:.2f} s{advice}",
            shown and seconds > _SAID_FROM_S,
        )


def _in_a_child(cache: Cache, recipe: Recipe, indices: list[int]) -> tuple[str, str]:
    ours, theirs = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # the child has what is buffered here too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if not child:
        _compare(theirs, cache, recipe, indices)
    os.close(theirs)
    try:
        return _answer(ours)
    finally:
        os.close(ours)
        with suppress(ProcessLookupError, ChildProcessError):  # somebody else may have waited for it
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _answer(descriptor: int) -> tuple[str, str]:
    deadline, data = time.monotonic() + TIMEOUT_S, b""
    ready = select.poll()  # select() knows the first 1,024 descriptors alone
    ready.register(descriptor, select.POLLIN)
    while ready.poll(max(0.0, deadline - time.monotonic()) * 1e3):
        more = os.read(descriptor, 1 << 16)
        if not more:
            kind, text = json.loads(data) if data else ("skipped", "its process died")
            return kind, text
        data += more
    return "skipped", f"it took longer than {TIMEOUT_S} s"


def _compare(descriptor: int, cache: Cache, recipe: Recipe, indices: list[int]) -> NoReturn:
    try:
        import torch

        torch.set_num_threads(1)  # the threads of the parent's pool are not here
        said = _difference(cache, recipe, indices)
    except BaseException as error:
        said = "skipped", f"{type(error).__name__}: {error}"
    try:
        with open(descriptor, "wb") as pipe:
            pipe.write(json.dumps(said).encode())
    finally:
        os._exit(0)


def _difference(cache: Cache, recipe: Recipe, indices: list[int]) -> tuple[str, str]:
    source, read = recipe.source(), {}
    if isinstance(source, Stream):  # what comes first of it, since nothing else can be read by itself
        read = source.probe(cache.source_index(len(indices) - 1) + 1, lambda _: 0, 0)
        indices = [index for index in range(len(indices)) if cache.source_index(index) in read]
    elif source.samples != cache.manifest.samples:
        return "differs", f"the dataset has {source.samples} samples now, the cache has {cache.manifest.samples}"
    split = splitter(cache.manifest.structure)
    for index in indices:
        at = cache.source_index(index)
        live = read[at] if read else source.read(at)
        kept = cache.with_types(tuple(set(_records(live))))[index]
        now: list[Any] = []
        then: list[Any] = []
        split(live, now)
        split(kept, then)
        for column, new, old in zip(cache.manifest.columns, now, then, strict=True):
            if columns.encode(column, [new]) != columns.encode(column, [old]):
                return "differs", (
                    f"sample {at}, column {column.name.strip('/') or 'sample'!r}: the dataset gives {_short(new)} "
                    f"now, the cache holds {_short(old)}. The data changed where no fingerprint looks, or the dataset "
                    "is random; rebuild=True builds anew"
                )
    return "same", ""


def _records(value: Any) -> Iterator[type]:
    """The classes of the records in a sample: with them, the cache's value is of the same ones."""
    kind = record_kind(type(value))
    if kind is not None:
        yield type(value)
        value = [getattr(value, field, None) for field in kind[1]]
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _records(item)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
