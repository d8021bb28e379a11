"""Worker processes that build whole shards: no sample crosses a process boundary.

When all rows of a shard are in its file, the worker goes on with the next shard. Meanwhile a thread of it flushes the
file, hashes it and keeps its record: that is mostly waiting for the disk.

A worker says in a few bytes of shared memory which sample it is reading, and since when. So the parent can end one that
hangs in a sample, and name the sample that a worker died of.
"""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import msgspec

from shardcache.builder.shards import Report, ShardRecord, WrittenShard, write_shard
from shardcache.builder.source import Source
from shardcache.builder.work import Work, sendable
from shardcache.errors import BuildError, SampleError, UsageError, WorkerDiedError
from shardcache.read.orphans import exit_after

_MAX_ATTEMPTS = 3
_PATIENCE_S = 5  # with a worker that was asked to end
_TICK_S = 1.0  # between two looks at the workers, where nothing is heard of them
_DEAD = object()
_HEAP_BYTES = 64 << 20  # that a worker keeps: memory that is given back is zeroed by the system when it is used again
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class Written(msgspec.Struct, frozen=True):
    """The rows of a shard are in its file; what is left to do needs the worker's process no more than its life."""

    number: int


class _Now(ctypes.Structure):
    """Where a worker is; written by it alone, read by the parent."""

    _fields_ = (("since", ctypes.c_double), ("sample", ctypes.c_int64), ("is_reading", ctypes.c_bool))


class _Watched(Source):
    """A source that says which sample it is at."""

    def __init__(self, dataset: Any, now: Any) -> None:
        super().__init__(dataset)
        self._now = now

    def read(self, index: int) -> Any:
        now = self._now
        now.since, now.sample, now.is_reading = time.monotonic(), index, True
        try:
            return super().read(index)
        finally:
            now.is_reading = False


class _Sent:
    """Work for another process; one that is not forked gets it by a protocol that keeps the byte order of arrays."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __reduce__(self) -> Any:
        return _received, (bytes(ForkingPickler.dumps(self.work, pickle.HIGHEST_PROTOCOL)),)


def _received(data: bytes) -> _Sent:
    return _Sent(pickle.loads(data))  # the user's own dataset, from the process that started this one


class _Worker:
    """A worker process, the shard that it is at, those that its thread is still at, and how many it has done."""

    def __init__(self, context: Any, work: Work) -> None:
        self.number, self.done, self.is_late = -1, 0, False
        self.written: list[int] = []
        self.now = context.RawValue(_Now, 0.0, -1, False)
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_live, args=(theirs, _Sent(work), self.now), daemon=True)
        try:
            self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                f"the dataset cannot be sent to a worker process that is not a fork ({error}); give a callable that "
                "makes it, 'module:callable' or 'file.py:callable'"
            ) from error
        except OSError as error:
            raise BuildError(f"a worker process cannot be started ({error.strerror})") from error
        theirs.close()

    def give(self, number: int | None) -> None:
        """A shard, or that there are no more. Whether the worker lives shows when something is received from it."""
        self.number = -1 if number is None else number
        with suppress(OSError):
            self.connection.send(number)

    def receive(self) -> Any:
        """The next message of the worker; None where there is none yet, ``_DEAD`` where none will come."""
        is_dead = not self.process.is_alive()  # asked first, so that its last words are heard
        try:
            return self.connection.recv() if self.connection.poll() else _DEAD if is_dead else None
        except (EOFError, OSError):
            return _DEAD

    def end_if_late(self, timeout: float) -> None:
        """Kill a worker that has been reading one sample for too long."""
        since = self.now.since
        if self.now.is_reading and time.monotonic() - since > timeout:
            self.is_late = True
            self.process.kill()

    def close(self) -> None:
        """Wait for a worker that was told to end; not for long."""
        self.process.join(_PATIENCE_S)
        self.process.kill()
        self.process.join(_PATIENCE_S)
        self.connection.close()

    def epitaph(self) -> str:
        """What a dead worker was at."""
        if self.now.sample < 0:
            return "before it read a sample"
        return f"while it read sample {self.now.sample}" if self.now.is_reading else f"after sample {self.now.sample}"


class Pool:
    """As many worker processes as are wanted, each at one shard.

    A worker that dies, or is killed because it reads one sample for more than ``sample_timeout`` seconds, is replaced
    and its shard given out again; the third time over one shard is an error. A worker that has done
    ``max_shards`` makes room for a new one.
    """

    def __init__(self, work: Work, workers: int, sample_timeout: float | None, max_shards: int | None) -> None:
        self._work, self._size, self._timeout, self._max_shards = work, workers, sample_timeout, max_shards
        self._context = multiprocessing.get_context()
        self._workers: list[_Worker] = []
        self._waiting: deque[int] = deque()
        self._epitaphs: dict[int, list[str]] = defaultdict(list)  # of the workers that died over a shard

    def build(self, shards: Sequence[int], report: Callable[[Report], None]) -> Iterator[ShardRecord]:
        """Build ``shards``, in whatever order they are done."""
        self._waiting.extend(shards)
        try:
            while self._waiting or self._workers:
                while self._waiting and len(self._workers) < self._size:
                    self._start()
                self._wait()
                for worker in list(self._workers):
                    message = worker.receive()
                    if message is _DEAD:
                        self._bury(worker)
                    elif isinstance(message, Report):
                        report(message)
                    elif isinstance(message, Written):
                        self._go_on(worker)
                    elif isinstance(message, ShardRecord):
                        self._finished(worker, message.number)
                        yield message
                    elif message is not None:
                        raise message
        finally:
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.close()

    def _start(self) -> None:
        worker = _Worker(self._context, self._work)
        self._workers.append(worker)
        worker.give(self._waiting.popleft())

    def _wait(self) -> None:
        """Until something is heard of a worker. Its sentinel too: what it has started may hold its pipe open."""
        ready: list[Any] = [worker.connection for worker in self._workers]
        ready += [worker.process.sentinel for worker in self._workers]
        if self._timeout is None:
            multiprocessing.connection.wait(ready, _TICK_S)
            return
        multiprocessing.connection.wait(ready, min(_TICK_S, self._timeout / 4))
        for worker in self._workers:
            worker.end_if_late(self._timeout)

    def _go_on(self, worker: _Worker) -> None:
        """With the next shard, or not at all."""
        worker.done += 1
        worker.written.append(worker.number)
        is_spent = self._max_shards is not None and worker.done >= self._max_shards
        worker.give(None if is_spent or not self._waiting else self._waiting.popleft())

    def _finished(self, worker: _Worker, number: int) -> None:
        """The record of a shard is there; a worker that has nothing else is done."""
        worker.written.remove(number)
        if worker.number < 0 and not worker.written:
            self._workers.remove(worker)
            worker.close()

    def _bury(self, worker: _Worker) -> None:
        """Give out a dead worker's shards again; :class:`WorkerDiedError` where that was tried often enough."""
        self._workers.remove(worker)
        worker.close()
        *others, number = [*worker.written, worker.number] if worker.number >= 0 else worker.written
        self._waiting.extendleft(others)
        epitaphs = self._epitaphs[number]
        epitaphs.append(worker.epitaph())
        if len(epitaphs) < _MAX_ATTEMPTS:
            self._waiting.appendleft(number)
            return
        times = f"{_MAX_ATTEMPTS} times over shard {number:05d}"
        where = f"{epitaphs[0]}, {times}" if len(set(epitaphs)) == 1 else f"{times}: {', '.join(epitaphs)}"
        if worker.is_late:
            raise SampleError(
                f"dataset[{worker.now.sample}] did not return within {self._timeout:g} s (sample_timeout); worker "
                f"processes ended {where}"
            )
        code = worker.process.exitcode or 0
        cause = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
        raise WorkerDiedError(f"a worker process ended {cause} {where} (out of memory? a crash in the dataset?)")


def _live(connection: Connection, sent: _Sent, now: Any) -> None:
    """A worker's life: shard numbers in, reports and records out, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _end_with_parent()
    parent, work = _Parent(connection), sent.work
    try:
        _limit_threads()
        _keep_heap()
        source = work.source(lambda dataset: _Watched(dataset, now))
        with ThreadPoolExecutor(1) as thread:
            before: Future[None] | None = None
            while (number := connection.recv()) is not None:
                shard = write_shard(source, work.plan, number, work.directory, parent.send)
                if before is not None:
                    before.result()  # one file at a time waits for the disk
                parent.send(Written(number))
                before = thread.submit(_finish, work, shard, parent)
    except BaseException as error:
        parent.send(sendable(error))
        if not isinstance(error, Exception):
            raise


class _Parent:
    """The way to the parent, for two threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)


def _finish(work: Work, shard: WrittenShard, parent: _Parent) -> None:
    try:
        record = shard.finish()
        work.keep(record)
        parent.send(record)
    except BaseException as error:
        parent.send(sendable(error))


def _end_with_parent() -> None:
    """A worker whose parent was killed would write on into what the next build continues."""
    with suppress(AttributeError, OSError, TypeError):  # Linux does it at once, also where a sample holds the GIL
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=exit_after, args=(parent.sentinel,), daemon=True).start()


def _limit_threads() -> None:
    """Workers share the cores; threads of their own would only get in each other's way."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that is imported only now
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _keep_heap() -> None:
    """Have glibc keep what large blocks are freed of; other libraries do as they think best."""
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _HEAP_BYTES)
