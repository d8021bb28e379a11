"""The queue of a worker process to the training process, without the queue's thread.

A ``multiprocessing.Queue`` hands each message to a thread of its own, which pickles it and writes it into a pipe. For
messages of a few hundred bytes that costs more than it saves: two threads wake each other and want the interpreter at
the same time, once a batch. So as long as the pipe has room a message is written here and now, and the thread is never
started. Otherwise it is the queue's: it must not be waited for here, because a training process that is about to end
its workers reads no more. From then on all are, so that they stay in their order.
"""

import select
from contextlib import suppress
from multiprocessing.queues import Queue
from typing import Any

from shardcache.read.messages import Packed, pack
from shardcache.read.ring import Rings

PATIENCE_S = 0.05  # for another worker that writes
_MOST_BYTES = 8 << 10  # an empty pipe takes them, whatever the system's limits
_LENGTH_BYTES = 4


class Outbox:
    """Stands in for the ``put`` of a queue, in the process that puts."""

    def __init__(self, queue: "Queue[Any]", rings: Rings) -> None:
        self._put, self._rings = queue.put, rings
        own: Any = queue  # with the names that it has in CPython, since 3.3
        self._queue = own
        self._pipe: int = own._writer.fileno()
        self._is_writable = select.poll()
        self._is_writable.register(self._pipe, select.POLLOUT)

    def put(self, content: object, *args: Any, **kwargs: Any) -> None:
        """As that of the queue."""
        packed = pack(self._rings, content)
        if not self._write(packed):
            self._put(Packed(packed), *args, **kwargs)

    def _write(self, packed: bytes) -> bool:
        """Write a message, if nothing has to be waited for but another worker that does the same."""
        queue = self._queue
        if queue._closed or queue._thread is not None or not queue._wlock.acquire(timeout=PATIENCE_S):
            return False
        try:
            if not self._has_room(_LENGTH_BYTES + len(packed)) or not queue._sem.acquire(block=False):
                return False
            with suppress(OSError):  # nobody reads any more: the queue's thread knows what to do
                queue._writer.send_bytes(packed)
                return True
            queue._sem.release()
            return False
        finally:
            queue._wlock.release()

    def _has_room(self, nbytes: int) -> bool:
        """Whether the pipe takes so many bytes at once."""
        if nbytes <= select.PIPE_BUF:
            return self._is_writable.poll(0) == [(self._pipe, select.POLLOUT)]
        return nbytes <= _MOST_BYTES and bool(self._queue.empty())
