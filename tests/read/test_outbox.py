"""How a worker's messages get into its queue: at once where that is possible, and always in their order."""

import multiprocessing
import queue as queues
import threading
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardcache.read import outbox
from shardcache.read.messages import Packed
from shardcache.read.transport import RingTransport, transport

IN_A_PAGE, IN_AN_EMPTY_PIPE, MORE = 1000, 6000, 100_000  # bytes


@pytest.fixture
def queue() -> Any:
    made: Any = multiprocessing.Queue()
    RingTransport(made)
    yield made
    made.cancel_join_thread()  # a test that failed has left messages that nobody reads
    made.close()


def test_a_message_is_there_at_once_and_no_thread_was_started(queue: Any) -> None:
    for size in (0, IN_A_PAGE, IN_AN_EMPTY_PIPE):
        queue.put((size, bytes(size)))
        assert queue.get(block=False) == (size, bytes(size))
    assert queue._thread is None


@pytest.mark.parametrize("last", [IN_AN_EMPTY_PIPE, MORE])
def test_what_the_pipe_may_not_take_waits_in_the_queue(queue: Any, last: int) -> None:
    queue.put((0, bytes(IN_A_PAGE)))
    queue.put((1, bytes(last)))
    assert queue._thread is not None
    assert [queue.get(timeout=30)[0] for _ in range(2)] == [0, 1]


def test_messages_keep_their_order_when_the_pipe_is_full(queue: Any) -> None:
    sizes = [IN_A_PAGE] * 200 + [MORE] * 3 + [IN_A_PAGE] * 50  # the first of them are more than a pipe takes
    for number, size in enumerate(sizes):
        queue.put((number, bytes(size)))
    assert queue._thread is not None
    found = [queue.get(timeout=30) for _ in sizes]
    assert found == [(number, bytes(size)) for number, size in enumerate(sizes)]
    queue.put((0, "more"))
    assert queue.get(timeout=30) == (0, "more")


def test_what_the_thread_has_not_sent_yet_is_not_overtaken(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, reduce = threading.Event(), Packed.__reduce__

    def when_told(packed: Packed) -> Any:
        go_on.wait(30)
        return reduce(packed)

    monkeypatch.setattr(Packed, "__reduce__", when_told)
    queue.put((0, bytes(MORE)))
    queue.put((1, "there is room for it"))
    assert queue.empty()
    go_on.set()
    assert [queue.get(timeout=30)[0] for _ in range(2)] == [0, 1]


def test_another_writer_that_does_not_end_is_not_waited_for(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.001)
    with queue._wlock:
        queue.put((0, "first"))
        queue.put((1, "second"))
        assert queue.empty()
    assert [queue.get(timeout=30) for _ in range(2)] == [(0, "first"), (1, "second")]


def test_a_bounded_queue_stays_bounded() -> None:
    queue: Any = multiprocessing.Queue(2)
    RingTransport(queue)
    queue.put((0, "a"))
    queue.put((1, "b"))
    with pytest.raises(queues.Full):
        queue.put((2, "c"), timeout=0.01)
    assert [queue.get(timeout=30) for _ in range(2)] == [(0, "a"), (1, "b")]
    queue.close()


def test_a_closed_queue_takes_nothing(queue: Any) -> None:
    queue.close()
    with pytest.raises(ValueError, match="closed"):
        queue.put((0, "late"))


def test_where_nobody_reads_any_more_nothing_is_raised() -> None:
    queue: Any = multiprocessing.Queue()
    RingTransport(queue)
    queue._reader.close()
    queue.put((0, "for nobody"))  # the queue's thread ends, as it always does
    queue.cancel_join_thread()


class Threads(IterableDataset[Any]):
    """The names of the threads of the worker, batch by batch."""

    def __iter__(self) -> Any:
        transport("auto")
        info = get_worker_info()
        for number in range(20):
            yield info.id if info else 0, number, [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_needs_no_thread_to_send(context: str) -> None:
    loader = DataLoader(Threads(), batch_size=None, num_workers=2, multiprocessing_context=context)
    for _ in range(2):
        found = list(loader)
        assert [(worker, number) for worker, number, _ in found] == [(k % 2, k // 2) for k in range(40)]
        assert all("QueueFeederThread" not in names for _, _, names in found)
