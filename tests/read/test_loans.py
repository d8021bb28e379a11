"""What the batch ring leaves behind: nothing, whoever dies and whenever."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardcache.read import loans
from shardcache.read.transport import RingTransport, transport
from tests.processes import is_alive, kill_worker

SIZE = 20_000  # too few for torch to use threads: a forked child could not


class Numbers(IterableDataset[Tensor]):
    """Batch t is full of t, in each worker; with the worker's process in front."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.count):
            (tensor,) = transport("auto").batch([(torch.int32, (SIZE,))])
            tensor.fill_(number)[0] = os.getpid()
            yield tensor


def load(count: int, workers: int = 1, **options: Any) -> DataLoader[Tensor]:
    return DataLoader(Numbers(count), batch_size=None, num_workers=workers, **options)


def check(tensor: Tensor, number: int) -> bool:
    return tensor.shape == (SIZE,) and bool((tensor[1:] == number).all())


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


before: dict[str, set[Any]] = {"maps": set(), "fd": set(), "rings": set(), "shm": set()}


def held(what: str, pid: int | None = None) -> set[str]:
    """The rings that a process has mapped ("maps") or open ("fd"); for this process since the test began."""
    place = Path(f"/proc/{pid or 'self'}/{what}")
    lines = place.read_text().splitlines() if what == "maps" else []
    for link in place.iterdir() if what == "fd" else ():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            lines.append(f"{link.name} {link.readlink()}")
    found = {line for line in lines if "memfd:shardcache-batches" in line}
    return found if pid else found - before[what]


def rings() -> list[bytes]:
    return [name for name in loans._rings if name not in before["rings"]]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()  # what other tests left
    for what in before:
        before[what] = set()
    before.update(maps=held("maps"), fd=held("fd"), rings=set(loans._rings), shm=set(os.listdir("/dev/shm")))
    yield
    gc.collect()  # the worker's side, where a test has it in its own process
    assert not held("maps")
    assert not held("fd")
    assert not rings()
    assert not loans._guards
    assert not [name for name in set(os.listdir("/dev/shm")) - before["shm"] if f"_{os.getpid()}_" in name]


def test_fifty_epochs_of_new_workers_leave_descriptors_and_maps_as_they_were() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())

    seen = []
    for _ in range(50):
        for number, tensor in enumerate(load(4)):
            assert check(tensor, number)
        del tensor
        assert not held("maps")
        assert not held("fd")
        seen.append(count())
    for counts in zip(*seen[5:], strict=True):  # other things come and go; one an epoch would be 44 more
        assert max(counts) - min(counts) < 20


def test_epochs_of_persistent_workers_use_one_ring_a_worker() -> None:
    loader = load(6, 2, persistent_workers=True)
    seen = set()
    for _ in range(20):
        for step, tensor in enumerate(loader):
            assert check(tensor, step // 2)
        seen.add(tuple(sorted(rings())))
        assert len(held("maps")) == len(held("fd")) == 2
    assert len(seen) == 1
    del tensor, loader
    assert not held("maps")


def test_a_map_stays_as_long_as_a_batch_views_it_and_no_longer() -> None:
    kept = list(load(3))
    assert not rings()  # the workers are gone
    assert len(held("maps")) == 1
    view = kept[1][5:7]
    del kept
    assert view.tolist() == [1, 1]
    assert len(held("maps")) == 1
    del view


def test_batches_outlive_a_worker_that_is_killed() -> None:
    iterator = iter(load(1000))
    kept = [next(iterator) for _ in range(4)]
    worker = int(kept[0][0])
    killer = kill_worker(iterator, worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        kept.extend(iterator)
    killer.join()
    assert all(check(tensor, number) for number, tensor in enumerate(kept))
    kept[0].fill_(7)
    del iterator
    assert all(check(tensor, number or 7) for number, tensor in enumerate(kept))


PARENT = """
import sys
from tests.read.test_loans import load
loader = load(10**6, 2, persistent_workers=True, multiprocessing_context=sys.argv[1])
kept = []
for step, tensor in enumerate(loader):
    kept = [*kept[-3:], tensor]
    if step == 20:
        print(int(kept[0][0]), int(kept[1][0]), flush=True)
        input()
"""


@pytest.mark.parametrize("whom", ["worker", "parent"])
def test_nothing_is_left_after_a_kill(tmp_path: Path, whom: str) -> None:
    """Neither a process, nor a file: all that is shared has no name."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    shared = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "fork"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert all(is_alive(pid) and len(held("maps", pid)) == 1 for pid in workers)
    assert len(held("maps", parent.pid)) == 2
    os.kill(workers[0] if whom == "worker" else parent.pid, signal.SIGKILL)
    if whom == "worker":
        parent.communicate("\n")
    parent.wait()
    wait_until(lambda: not any(map(is_alive, workers)))
    assert list(tmp_path.iterdir()) == []
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if str(parent.pid) in name]
    parent.stdin.close()
    parent.stdout.close()


def watch(tensor: Tensor, number: int, go: Any, said: Any) -> None:
    said.put(check(tensor, number))
    go.wait()
    said.put(check(tensor, number))


def test_a_forked_child_of_the_consumer_keeps_what_it_was_given() -> None:
    """The parent forgets the batch at once, and many others come."""
    context = multiprocessing.get_context("fork")
    go, said = context.Event(), context.SimpleQueue()
    loader = load(200, persistent_workers=True)
    children = []
    for number, tensor in enumerate(loader):
        assert check(tensor, number)
        if number in (3, 4):
            children.append(context.Process(target=watch, args=(tensor, number, go, said)))
            children[-1].start()
            assert said.get()
    assert len(loans._guards) == 2
    go.set()
    assert said.get()
    assert said.get()
    for child in children:
        child.join()
    ring = loans._rings[rings()[0]]
    del tensor
    assert not loans._guards  # asked when the last batch died
    assert not ring.live
    assert not any(ring.memory[loans.LOANS_AT : loans.LOANS_AT + 10])
    assert [check(tensor, number) for number, tensor in enumerate(loader)] == [True] * 200


def test_workers_forked_later_hold_no_memory_of_a_loader_that_is_gone() -> None:
    first = load(50, persistent_workers=True)
    assert check(next(iter(first)), 0)
    second = iter(load(50, persistent_workers=True))
    worker = int(next(second)[0])
    assert len(held("maps", worker)) == 1  # its own
    del first
    assert len(held("maps")) == 1
    del second


def test_a_child_that_dies_with_tensors_of_ours_gives_back_nothing() -> None:
    loader = load(100, persistent_workers=True)
    kept = []
    for number, tensor in enumerate(loader):
        if number == 5:
            kept.append(tensor)
            child = os.fork()
            if not child:
                kept.clear()
                del tensor
                os._exit(0)
            os.waitpid(child, 0)
        assert all(check(tensor, 5) for tensor in kept)
    del tensor


def test_a_forked_child_of_a_worker_keeps_what_it_inherited() -> None:
    queue: Any = multiprocessing.Queue()
    source = RingTransport(queue, slots=4)
    (tensor,) = source.batch([(torch.int32, (SIZE,))])
    tensor.fill_(1)
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(write_end)
        os.read(read_end, 1)
        own = source.batch([(torch.int32, (SIZE,))])  # not from the ring, which is the parent's
        own[0].fill_(3)
        os._exit(0 if check(tensor.clone().fill_(1), 1) and bool((tensor == 1).all()) else 1)
    del tensor
    for _ in range(20):
        source.batch([(torch.int32, (SIZE,))])[0].fill_(2)
    later = source.batch([(torch.int32, (SIZE,))])[0].fill_(2)
    os.close(write_end)
    assert os.waitpid(child, 0)[1] == 0
    assert bool((later == 2).all())
    os.close(read_end)


class Two(IterableDataset[Any]):
    """Two data sets in one worker share its ring."""

    def __iter__(self) -> Iterator[Any]:
        assert get_worker_info() is not None
        for one, other in zip(Numbers(30), Numbers(30), strict=True):
            yield {"one": one, "other": other}
        assert len(held("maps", os.getpid()) - before["maps"]) == 1


def test_data_sets_in_one_worker_share_a_ring() -> None:
    for number, batch in enumerate(DataLoader(Two(), batch_size=None, num_workers=1)):
        assert check(batch["one"], number)
        assert check(batch["other"], number)
    del batch


def test_a_ring_is_told_from_another_at_the_same_place() -> None:
    queue: Any = multiprocessing.Queue()
    source = RingTransport(queue)
    source.batch([(torch.int32, (SIZE,))])
    ring = source._rings._rings[0]
    with pytest.raises(Exception, match="is not the batch ring that it was"):
        loans.loan(b"another ring's..", os.getpid(), ring.fd, 0, loans.HEAD_BYTES, 100)
    with pytest.raises(Exception, match="transport='torch' helps"):
        loans.loan(b"another ring's..", os.getpid(), 10**6, 0, loans.HEAD_BYTES, 100)
