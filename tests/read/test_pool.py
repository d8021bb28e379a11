"""The pool of a process: memory is used again when nobody has it any more, and never before."""

import multiprocessing
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shardcache import CachedDataset
from shardcache.read import pool
from shardcache.read.pool import KEPT_FOR, LEAST_BYTES, MOST_PIECES, Pool
from tests.read.sources import SOURCES, assert_same


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LEAST_BYTES", 1000)


def make(source: Pool, size: int, value: int) -> Tensor:
    (tensor,) = source.batch([(torch.uint8, (size,))])
    return tensor.fill_(value)


# What shares the memory of a tensor, and is all that is kept of it:
KEPT: list[Callable[[Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: tensor[7:90],
    lambda tensor: tensor.view(torch.int8),
    lambda tensor: tensor.numpy()[5:],
]


@pytest.mark.usefixtures("small")
class TestPieces:
    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(800, 9000)), max_size=60), st.randoms())
    def test_memory_in_use_is_never_given_out_again(self, steps: list[tuple[int, int]], rng: random.Random) -> None:
        source, kept = Pool(), dict[int, tuple[int, Any]]()
        for number, (place, size) in enumerate(steps):
            value = number + 1
            kept[place] = value, rng.choice(KEPT)(make(source, size, value))
            for expected, found in kept.values():
                assert (torch.as_tensor(found) == expected).all()

    def test_memory_that_nobody_has_is_used_again(self) -> None:
        source = Pool()
        addresses = {make(source, 5000, number).data_ptr() for number in range(100)}
        assert len(addresses) == 1
        addresses = {make(source, 4000 - number % 5, number).data_ptr() for number in range(100)}
        assert len(addresses) == 1
        assert addresses.pop() % 64 == 0

    def test_tensors_of_one_batch_lie_apart(self) -> None:
        tensors = Pool().batch([(torch.uint8, (1001,)), (torch.float64, (3, 5)), (torch.bool, (0,)), (torch.int16, ())])
        for number, tensor in enumerate(tensors):
            tensor.fill_(number)
        assert [sorted(set(tensor.flatten().tolist())) for tensor in tensors] == [[0], [1.0], [], [3]]
        assert [tuple(tensor.shape) for tensor in tensors] == [(1001,), (3, 5), (0,), ()]

    def test_who_keeps_everything_gets_ordinary_memory(self) -> None:
        source = Pool()
        kept = [make(source, 2000, number % 256) for number in range(2 * MOST_PIECES)]
        assert all((tensor == number % 256).all() for number, tensor in enumerate(kept))
        assert len(source._pieces) == MOST_PIECES

    def test_what_is_not_used_for_long_is_given_back(self) -> None:
        source = Pool()
        kept = [make(source, 2000, number) for number in range(30)]
        del kept
        for number in range(2 * KEPT_FOR):
            make(source, 2000, number)
        assert len(source._pieces) == 1

    def test_a_piece_much_larger_than_what_is_wanted_is_left_alone(self) -> None:
        source = Pool()
        make(source, 100_000, 1)
        make(source, 2000, 1)
        assert sorted(len(piece.memory) // 1000 for piece in source._pieces) == [2, 100]

    def test_each_has_memory_of_its_own(self) -> None:
        source = Pool()
        first, *rest = source.each(5, torch.int32, (600,))
        addresses = {tensor.data_ptr() for tensor in rest}
        del rest
        assert {tensor.data_ptr() for tensor in source.each(4, torch.int32, (600,))} == addresses
        assert first.data_ptr() not in addresses
        assert first.untyped_storage().nbytes() == 2400

    def test_threads_get_memory_of_their_own(self) -> None:
        source, whole = Pool(), list[int]()

        def work(value: int) -> None:
            for _ in range(300):
                assert (make(source, 3000, value) == value).all()
            whole.append(value)

        threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(whole) == [0, 1, 2, 3]

    def test_a_forked_child_has_memory_of_its_own(self) -> None:
        source = Pool()
        tensor = make(source, 3000, 1)
        source._lock.acquire()  # as another thread may have, at the moment of a fork
        child = multiprocessing.get_context("fork").Process(target=lambda: [tensor.fill_(2), make(source, 3000, 3)])
        child.start()
        child.join(60)
        source._lock.release()
        assert child.exitcode == 0
        assert (tensor == 1).all()

    def test_it_is_pickled_as_an_empty_one(self) -> None:
        source = Pool()
        tensor = make(source, 3000, 1)
        assert not pickle.loads(pickle.dumps(source))._pieces
        assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)

    def test_batches_of_a_data_set_lie_in_it_and_are_right_however_long_they_are_kept(self, cache_of: Any) -> None:
        dataset = CachedDataset(cache_of("images"), batch_size=40, shuffle=True, with_meta=True)
        addresses, kept = set(), []
        for epoch in range(4):
            dataset.set_epoch(epoch)
            for number, ((images, _), meta) in enumerate(dataset):
                addresses.add(images.data_ptr())
                if number % 5 == 0:
                    kept.append((images, meta.index))
        assert len(dataset._recipe.memory._pieces) <= len(kept) + 3
        assert len(addresses) < 30
        for images, index in kept:
            assert_same(list(images), [SOURCES["images"][at][0] for at in index.tolist()])


def test_small_tensors_are_the_allocators() -> None:
    source = Pool()
    (tensor,) = source.batch([(torch.uint8, (LEAST_BYTES - 64,))])
    assert tensor.resize_(LEAST_BYTES).untyped_storage().nbytes() == LEAST_BYTES
    (tensor,) = source.batch([(torch.uint8, (LEAST_BYTES,))])
    assert len(source._pieces) == 1
    with pytest.raises(RuntimeError, match="not resizable"):
        tensor.resize_(LEAST_BYTES + 1)
