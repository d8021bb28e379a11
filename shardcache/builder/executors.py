"""Shards built by somebody else's processes or threads: any ``concurrent.futures.Executor``.

A unit of work is one shard, so what travels is small: the pickled recipe and plan there, a record back. The dataset is
made once in each process, whatever it is a process of.

Nobody here can end a process that is not ours. One that was taken for dead may live on, beside the one that was given
its shard: so each attempt writes to a directory of its own, and its last step renames the shard, which is the same to
the bit, to its place. When a build ends, however it does, those directories go, and who still works in one gives up.
"""

import concurrent.futures
import os
import pickle
import secrets
import socket
import sys
import threading
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path

import msgspec

from shardcache.builder.shards import Report, ShardRecord, build_shard
from shardcache.builder.source import Source
from shardcache.builder.staging import ATTEMPTS
from shardcache.builder.swap import discard
from shardcache.builder.work import Work, sendable
from shardcache.errors import BuildError, ShardCacheError, StorageError, UsageError, WorkerDiedError
from shardcache.format import spec
from shardcache.format.files import storage_errors

_PATIENCE_S = 5.0  # with those who are at a shard when the build ends
_LOOK_S = 1.0  # how often they look whether it has
_IN_FLIGHT = 64  # shards, where an executor does not say how many workers it has
_MAX_MADE = 2  # datasets that a process keeps: two builds at once do not make theirs again for each shard
_CONTINUES = "what was finished is kept, and the same call continues there"


class Job(msgspec.Struct, frozen=True):
    """What is sent with each shard: ``work`` is pickled once, and looked at once in each process."""

    key: str
    work: bytes
    attempts: str


# By key of the job and number of the process, since a fork inherits them: what builds of this process have, and what
# was made here for builds of others.
_ours: dict[tuple[str, int], tuple[Work, Source]] = {}
_made: dict[tuple[str, int], tuple[Work, Source]] = {}
_making = threading.Lock()


def _forget_lock() -> None:
    global _making
    _making = threading.Lock()  # a thread that is not in the child may have had it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def build_in_executor(
    executor: Executor,
    work: Work,
    source: Source,
    shards: Sequence[int],
    report: Callable[[Report], None],
    in_flight: int,
) -> Iterator[ShardRecord]:
    """Build ``shards``, in whatever order they are done; at most ``in_flight`` are submitted at a time."""
    source.kept.clear()
    key = secrets.token_hex(8)
    attempts = work.directory / f"{ATTEMPTS}{key}"
    job = Job(key, _pickled(executor, work), str(attempts))
    waiting, running = deque(shards), dict[Future[tuple[ShardRecord, Report]], int]()
    most = in_flight or 2 * getattr(executor, "_max_workers", _IN_FLIGHT // 2)
    with storage_errors(attempts):
        attempts.mkdir()
    _ours[key, os.getpid()] = work, source  # for threads
    try:
        while waiting or running:
            while waiting and len(running) < most:
                number = waiting.popleft()
                running[_submitted(executor, job, number)] = number
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in sorted(done, key=_has_failed):
                record, told = _result(future, running.pop(future))
                report(told)
                work.keep(record)
                yield record
    finally:
        for future in running:
            future.cancel()
        discard(attempts)
        concurrent.futures.wait(running, _PATIENCE_S)
        discard(attempts)  # what they wrote meanwhile
        _ours.pop((key, os.getpid()), None)


def _pickled(executor: Executor, work: Work) -> bytes:
    """By value where that takes cloudpickle, which executors of dask and loky bring with them."""
    by_value = sys.modules.get("cloudpickle")
    try:
        data = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)  # NumPy's arrays lose their byte order in others
        return data if by_value is None or b"__main__" not in data else bytes(by_value.dumps(work))
    except Exception as error:
        if by_value is not None:
            with suppress(Exception):
                return bytes(by_value.dumps(work))
        if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            return b""  # its threads find the source of this process
        raise UsageError(
            f"the dataset cannot be sent to the processes of an executor ({error}); give a callable that makes it, "
            "'module:callable' or 'file.py:callable'"
        ) from error


def _submitted(executor: Executor, job: Job, number: int) -> "Future[tuple[ShardRecord, Report]]":
    try:
        return executor.submit(build_attempt, job, number)
    except Exception as error:
        raise _broken(error, number) from error


def _has_failed(future: "Future[tuple[ShardRecord, Report]]") -> bool:
    """Whether there is no shard: those that are there are kept first."""
    return future.cancelled() or future.exception() is not None


def _result(future: "Future[tuple[ShardRecord, Report]]", number: int) -> tuple[ShardRecord, Report]:
    try:
        return future.result()
    except ShardCacheError:
        raise
    except (Exception, CancelledError) as error:
        raise _broken(error, number) from error


def _broken(error: BaseException, number: int) -> BuildError:
    """What an executor says when it, and not the shard, is at fault."""
    what = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    if isinstance(error, concurrent.futures.CancelledError | CancelledError):
        return BuildError(f"shard {number:05d} was cancelled in its executor ({what}); {_CONTINUES}")
    if isinstance(error, concurrent.futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":
        return WorkerDiedError(
            f"a process of the executor died while shard {number:05d} was built (out of memory? a crash in the "
            f"dataset?): {what}; {_CONTINUES}"
        )
    return BuildError(f"the executor did not build shard {number:05d}: {what}; {_CONTINUES}")


def build_attempt(job: Job, number: int) -> tuple[ShardRecord, Report]:
    """What an executor runs: build a shard and put it in its place."""
    try:
        work, source = _source(job)
        attempt = Path(job.attempts) / f"{number:05d}-{secrets.token_hex(4)}"
        if not work.directory.is_dir():
            raise StorageError(
                f"{work.directory}: is not there on {socket.gethostname()}; all machines of an executor must have the "
                "directory of the cache under the same path"
            )
        with storage_errors(attempt):
            attempt.mkdir()
            told = _Told(attempt, number)
            record = build_shard(source, work.plan, number, attempt, told)
            name = spec.shard_name(number)
            (attempt / name).rename(work.directory / name)
            attempt.rmdir()
        return record, told.total
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise sendable(error) from None


def _source(job: Job) -> tuple[Work, Source]:
    """The dataset of this process, which the first to ask makes."""
    key = job.key, os.getpid()
    with _making:
        if key in _ours:
            return _ours[key]
        if key not in _made:
            try:
                work = pickle.loads(job.work)
            except Exception as error:
                raise UsageError(
                    f"the dataset cannot be made in a process of the executor ({type(error).__name__}: {error}); give "
                    "'module:callable', of a module that can be imported there"
                ) from error
            _made[key] = work, work.source()
            while len(_made) > _MAX_MADE:
                del _made[next(iter(_made))]
        return _made[key]


class _Told:
    """The last that a shard reported, with all that was skipped; gives up where its build has ended."""

    def __init__(self, attempt: Path, number: int) -> None:
        self._attempt, self._looked = attempt, time.monotonic()
        self.total = Report(number, 0, 0, 0)

    def __call__(self, report: Report) -> None:
        self.total = msgspec.structs.replace(report, skipped=self.total.skipped + report.skipped)
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            if not self._attempt.exists():
                raise BuildError(f"{self._attempt}: the build that this shard was for has ended")
