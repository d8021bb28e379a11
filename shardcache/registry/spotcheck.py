"""A few rows of the live dataset against the cache, read in a process of their own that ends with the check.

No fingerprint sees everything: a database, a library in C, a file that is opened by a name nobody wrote down. What is
compared is the stored form, so it is exact to the bit, and NaN equals itself.
"""

import multiprocessing
import os
import random
import signal
import warnings
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from shardcache.builder.source import Recipe
from shardcache.builder.stream import Stream
from shardcache.errors import ShardCacheWarning, StaleCacheError
from shardcache.format import columns
from shardcache.format.schema import record_kind, splitter
from shardcache.read.cache import Cache
from shardcache.read.cache import open as open_cache

TIMEOUT_S = 300
_SHOWN = 80


def check(cache: Cache, factory: Any, kwargs: Mapping[str, Any] | None, rows: int) -> None:
    """Compare ``rows`` samples, other ones each time.

    Raises:
        StaleCacheError: one differs; the message has its index, the column and both values.
    """
    if not rows or os.environ.get("LOCAL_RANK", "0") != "0":  # once a node
        return
    indices = random.SystemRandom().sample(range(len(cache)), min(rows, len(cache)))
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child runs one of its own
        # A fresh interpreter would take seconds to import torch, and a worker of a pool, which may ask for a cache too,
        # must not have a multiprocessing.Process.
        child = os.fork()
    if not child:
        ours.close()
        _compare(theirs, cache, factory, kwargs, indices)
    theirs.close()
    try:
        said = ours.recv() if ours.poll(TIMEOUT_S) else ("skipped", f"it took longer than {TIMEOUT_S} s")
    except EOFError:
        said = "skipped", "its process died"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ours.close()
    kind, text = said
    if kind == "differs":
        raise StaleCacheError(f"{cache.path}: {text}")
    if kind == "skipped":
        warnings.warn(f"{cache.path}: the spot check was skipped: {text}", ShardCacheWarning, stacklevel=4)


def _compare(
    connection: Connection, cache: Cache, factory: Any, kwargs: Mapping[str, Any] | None, indices: list[int]
) -> NoReturn:
    try:
        import torch

        torch.set_num_threads(1)  # the threads of the parent's pool are not here
        connection.send(_difference(cache, factory, kwargs, indices))
    except BaseException as error:
        connection.send(("skipped", f"{type(error).__name__}: {error}"))
    finally:
        connection.close()
        os._exit(0)


def _difference(cache: Cache, factory: Any, kwargs: Mapping[str, Any] | None, indices: list[int]) -> tuple[str, str]:
    source, read = Recipe(factory, kwargs).source(), {}
    if isinstance(source, Stream):  # what comes first of it, since nothing else can be read by itself
        read = source.probe(cache.source_index(len(indices) - 1) + 1, lambda _: 0, 0)
        indices = [index for index in range(len(indices)) if cache.source_index(index) in read]
    elif source.samples != cache.manifest.samples:
        return "differs", f"the dataset has {source.samples} samples now, the cache has {cache.manifest.samples}"
    split = splitter(cache.manifest.structure)
    for index in indices:
        at = cache.source_index(index)
        live = read[at] if read else source.read(at)
        kept = open_cache(cache.path, types=tuple(set(_records(live))))[index]
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
