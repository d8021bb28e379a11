"""Worker processes that build whole shards: no sample crosses a process boundary."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from shardcache.builder.shards import Report, ShardRecord, build_shard
from shardcache.builder.source import Recipe, Source
from shardcache.errors import BuildError, ShardCacheError, SourceError, UsageError, WorkerDiedError
from shardcache.format.manifest import Manifest

_MAX_ATTEMPTS = 3
_PATIENCE_S = 5  # with a worker that was asked to end


def build_here(
    source: Source, plan: Manifest, shards: Sequence[int], directory: Path, report: Callable[[Report], None]
) -> Iterator[ShardRecord]:
    """Build ``shards`` one after the other in this process."""
    for number in shards:
        yield build_shard(source, plan, number, directory, report)


def build_in_workers(
    recipe: Recipe,
    plan: Manifest,
    shards: Sequence[int],
    directory: Path,
    report: Callable[[Report], None],
    workers: int,
) -> Iterator[ShardRecord]:
    """Build ``shards`` in ``workers`` processes, in whatever order they are done.

    A worker that dies is replaced and its shard given out again; the third death over one shard is an error.
    """
    context = multiprocessing.get_context()
    waiting, attempts = list(reversed(shards)), dict.fromkeys(shards, 0)
    busy: dict[Connection, tuple[BaseProcess, int]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                _start(context, busy, waiting.pop(), (recipe, plan, directory))
            for connection in multiprocessing.connection.wait(list(busy)):
                assert isinstance(connection, Connection)
                process, number = busy[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    del busy[connection]
                    waiting.append(_died(connection, process, number, attempts))
                    continue
                if isinstance(message, Report):
                    report(message)
                elif isinstance(message, ShardRecord):
                    _next_shard(connection, busy, waiting)
                    yield message
                else:
                    raise message
    finally:
        for connection, (process, _) in busy.items():
            process.terminate()
            process.join(_PATIENCE_S)
            process.kill()
            process.join()
            connection.close()


def _start(context: Any, busy: dict[Connection, tuple[BaseProcess, int]], number: int, work: Any) -> None:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, *work), daemon=True)
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the dataset cannot be sent to a worker process that is not a fork ({error}); give a callable that makes "
            "it, 'module:callable' or 'file.py:callable'"
        ) from error
    theirs.close()
    busy[ours] = (process, number)
    _send(ours, number)


def _send(connection: Connection, number: int | None) -> None:
    """To a worker that may be dead, which shows when something is received from it."""
    with suppress(OSError):
        connection.send(number)


def _next_shard(connection: Connection, busy: dict[Connection, tuple[BaseProcess, int]], waiting: list[int]) -> None:
    process, _ = busy[connection]
    if waiting:
        number = waiting.pop()
        busy[connection] = (process, number)
        _send(connection, number)
        return
    del busy[connection]
    _send(connection, None)
    process.join()
    connection.close()


def _died(connection: Connection, process: BaseProcess, number: int, attempts: dict[int, int]) -> int:
    connection.close()
    process.join()
    attempts[number] += 1
    if attempts[number] >= _MAX_ATTEMPTS:
        code = process.exitcode or 0
        cause = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
        raise WorkerDiedError(
            f"a worker process ended {cause} while it built shard {number:05d}, {_MAX_ATTEMPTS} times "
            "(out of memory? a crash in the dataset?)"
        )
    return number


def _work(connection: Connection, recipe: Recipe, plan: Manifest, directory: Path) -> None:
    """A worker's life: shard numbers in, reports and records out, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _limit_threads()
        source = Source(recipe())
        if source.samples != plan.samples:
            raise SourceError(f"len() of the dataset is {source.samples} in a worker, {plan.samples} in the parent")
        while (number := connection.recv()) is not None:
            connection.send(build_shard(source, plan, number, directory, connection.send))
    except BaseException as error:
        connection.send(_sendable(error))
        if not isinstance(error, Exception):
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would write on into what the next build continues."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _limit_threads() -> None:
    """Workers share the cores; threads of their own would only get in each other's way."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _sendable(error: BaseException) -> ShardCacheError:
    """An error that survives the pipe: our types are built from one string, and the traceback rides along as a note."""
    sent = error if isinstance(error, ShardCacheError) else BuildError(f"{type(error).__name__}: {error}")
    sent.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)))
    sent.__cause__ = sent.__context__ = None
    return sent
