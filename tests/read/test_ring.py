"""The ring's memory and messages: what is in use is never given out again, and no more is used than is needed."""

import multiprocessing
import os
import pickle
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shardcache.errors import UsageError
from shardcache.read import loans, messages
from shardcache.read.ring import PAGE, TRIM_EVERY, Ring
from shardcache.read.transport import RingTransport

Steps = st.lists(st.tuples(st.sampled_from(["make", "send", "forget", "drop"]), st.integers(0, 400_000)), max_size=80)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(source: RingTransport, size: int, value: int) -> Tensor:
    (tensor,) = source.batch([(torch.uint8, (size,))])
    return tensor.fill_(value)


def whole(tensor: Tensor) -> bool:
    return not len(tensor) or bool((tensor == tensor[0]).all())


def ring_of(source: RingTransport) -> Ring:
    return source._rings._rings[-1]


def resident(ring: Ring) -> int:
    return os.fstat(ring.fd).st_blocks * 512


def test_large_tensors_that_are_yielded_one_by_one_have_a_region_each() -> None:
    source = RingTransport(slots=4)
    assert len(source.each(2, torch.uint8, (1000,))) == 2
    assert not source._rings._rings
    first, second = source.each(2, torch.int32, (3, 1 << 20))
    assert [region.end - region.start for region in ring_of(source).regions] == [12 << 20] * 2
    del first
    assert len(source.each(1, torch.int32, (3, 1 << 20))) == 1
    assert [region.is_free() for region in ring_of(source).regions] == [True, False]
    assert second.fill_(5).sum() == 15 << 20


@given(Steps)
def test_memory_in_use_is_never_given_out_again(steps: list[tuple[str, int]]) -> None:
    """Tensors are made, sent, forgotten by the sender and dropped by the receiver in any order."""
    source = RingTransport(slots=4)
    made: list[tuple[int, Tensor]] = []
    received: list[tuple[int, Tensor]] = []
    for number, (step, size) in enumerate(steps):
        value = number + 1
        if step == "make":
            made.append((value, make(source, size, value)))
        elif made and step == "send":
            kept, tensor = made[size % len(made)]
            received.append((kept, pickle.loads(messages.pack(source._rings, tensor))))
        elif made and step == "forget":
            made.pop(size % len(made))
        elif received and step == "drop":
            received.pop(size % len(received))
        assert all(bool((tensor == kept).all()) for kept, tensor in made + received)


def test_the_lowest_free_memory_comes_first_and_the_rest_is_never_resident() -> None:
    source = RingTransport(slots=16)
    kept = [make(source, 10 * PAGE, 1) for _ in range(3)]
    addresses = [tensor.data_ptr() for tensor in kept]
    assert addresses == [addresses[0] + k * 10 * PAGE for k in range(3)]
    kept[1] = torch.empty(0)
    for number in range(500):
        tensor = pickle.loads(messages.pack(source._rings, make(source, 9 * PAGE, number % 256)))
        assert isinstance(tensor, Tensor)
        assert whole(tensor)
        kept[1] = tensor
    assert make(source, 8 * PAGE, 1).data_ptr() == addresses[1] or make(source, 8 * PAGE, 1).data_ptr() > addresses[2]
    assert resident(ring_of(source)) <= 5 * 10 * PAGE + 2 * PAGE


def test_after_a_burst_memory_goes_back_to_the_system() -> None:
    source = RingTransport(slots=16)
    burst = [make(source, 100 * PAGE, 1) for _ in range(16)]
    assert resident(ring_of(source)) >= 1600 * PAGE
    assert make(source, 100 * PAGE, 1).untyped_storage().resizable()  # there is no more: an ordinary tensor
    kept = burst[0]
    del burst
    for _ in range(2 * TRIM_EVERY + 1):
        make(source, 100 * PAGE, 2)
    assert resident(ring_of(source)) <= 300 * PAGE
    assert bool((kept == 1).all())


def test_a_larger_ring_takes_over_and_the_old_one_is_dropped_when_its_batches_are_dead() -> None:
    source = RingTransport(slots=4)
    small = make(source, 1000, 1)
    sent = pickle.loads(messages.pack(source._rings, make(source, 1000, 2)))
    old = ring_of(source)
    large = make(source, 3 << 20, 3)
    assert old.memory[loans.CLOSED] == 1
    assert ring_of(source) is not old
    del small
    make(source, 1, 1)
    assert source._rings._rings[0] is old
    assert isinstance(sent, Tensor)
    assert bool((sent == 2).all())
    del sent
    make(source, 1, 1)
    assert source._rings._rings == [ring_of(source)]
    assert old.name not in loans._rings
    assert bool((large == 3).all())


def test_other_picklers_take_no_loan() -> None:
    source = RingTransport()
    tensor = make(source, 1000, 1)
    copies = [pickle.loads(pickle.dumps(tensor)), torch.clone(tensor), tensor.numpy().copy()]
    place = tensor.data_ptr()
    assert not any(ring_of(source).memory[loans.LOANS_AT : loans.HEAD_BYTES])
    del tensor
    assert make(source, 1000, 2).data_ptr() == place
    assert all(bool((copy == 1).all()) for copy in copies)


def test_a_message_that_fails_gives_its_loans_back() -> None:
    source = RingTransport()
    for _ in range(3):
        message = (7, [make(source, 1000, 1), lambda: None])
        unpacked: Any = pickle.loads(messages.pack(source._rings, message))
    assert unpacked[0] == 7
    with pytest.raises(TypeError, match="cannot be sent"):
        unpacked[1].reraise()
    assert not any(ring_of(source).memory[loans.LOANS_AT : loans.HEAD_BYTES])


def test_more_messages_than_there_are_loans_are_sent_as_bytes() -> None:
    source = RingTransport()
    tensor = make(source, 1000, 1)
    payloads = [messages.pack(source._rings, tensor) for _ in range(loans.LOANS + 10)]
    assert len(payloads[0]) < 300
    assert len(payloads[-1]) > 1000
    received = [pickle.loads(payload) for payload in payloads]
    assert all(isinstance(copy, Tensor) and bool((copy == 1).all()) for copy in received)
    del received
    assert len(messages.pack(source._rings, tensor)) < 300


def test_thousands_of_rows_travel_as_one_tensor() -> None:
    """However many, a row costs its size: one or two bytes, not a descriptor, nor a call for each of them."""
    source = RingTransport()
    sizes = [k % 200 for k in range(5000)]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    flat, other = source.batch([(torch.int32, (offsets[-1],)), (torch.int32, (4,))])
    flat.copy_(torch.arange(offsets[-1]))
    other.fill_(5)
    rows = source.rows(flat, offsets)
    payload = messages.pack(source._rings, {"rows": rows, "other": other})
    assert len(payload) < 5000 + 500
    received: Any = pickle.loads(payload)
    assert type(received["rows"]) is list
    assert torch.equal(torch.cat(received["rows"]), flat)
    assert [len(row) for row in received["rows"]] == sizes
    assert received["other"].tolist() == [5] * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [*rows[:2], rows[2].t(), *rows[3:]],
        lambda rows: [*rows[:2], rows[2].view(torch.float32), *rows[3:]],
        lambda rows: [*rows[:2], rows[2].clone(), *rows[3:]],
        lambda rows: [*rows[:2], rows[2].view(2, 3), *rows[3:]],
        lambda rows: [*rows, 7],
        lambda rows: [*rows, torch.eye(2).to_sparse()],
        lambda rows: [rows, rows],
        tuple,
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_rows_that_were_changed_or_moved_arrive_as_they_are(change: Any) -> None:
    source = RingTransport()
    (flat,) = source.batch([(torch.int32, (20,))])
    flat.copy_(torch.arange(20))
    rows = change(source.rows(flat, [0, 4, 4, 10, 20], [(4,), (3, 0), (3, 2), (10,)]))
    received: Any = pickle.loads(messages.pack(source._rings, rows))
    assert type(received) is type(rows)
    assert len(received) == len(rows)
    for one, other in zip(received, rows, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rows_of_a_part_of_a_tensor_and_no_rows_at_all() -> None:
    for source in (RingTransport(), RingTransport(slots=1)):
        kept = make(source, 1 << 20, 1)
        (flat,) = source.batch([(torch.int16, (20,))])
        flat.copy_(torch.arange(20))
        received: Any = pickle.loads(messages.pack(source._rings, source.rows(flat, [3, 5, 9])))
        assert [row.tolist() for row in received] == [[3, 4], [5, 6, 7, 8]]
        assert pickle.loads(messages.pack(source._rings, source.rows(flat[:0], [0]))) == []
        with pytest.raises(RuntimeError):
            source.rows(flat, [0, 20], [(3, 7)])
        assert whole(kept)


def test_a_consumer_in_many_threads_sees_whole_batches() -> None:
    """For a second: threads that keep batches for a while, drop them in any order and look at them all the time."""
    queue: Any = multiprocessing.Queue(8)
    source = RingTransport(queue, slots=12)
    wrong: list[int] = []
    seen = [0]
    end = time.monotonic() + 1

    def consume(seed: int) -> None:
        chance, kept = random.Random(seed), []
        while (batch := queue.get()) is not None:
            kept.append(batch)
            while len(kept) > chance.randrange(7):
                kept.pop(chance.randrange(len(kept)))
            wrong.extend(value for value, tensor in kept if not bool((tensor == value).all()))
            seen[0] += 1

    threads = [threading.Thread(target=consume, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    value = 0
    while time.monotonic() < end:
        value += 1
        queue.put((value % 256, make(source, 1 + value * 7919 % 30_000, value % 256)))
    for _ in threads:
        queue.put(None)
    for thread in threads:
        thread.join()
    queue.close()
    assert not wrong
    assert seen[0] == value


def test_slots_must_be_positive() -> None:
    with pytest.raises(UsageError, match="slots must be at least 1, not 0"):
        RingTransport(slots=0)
