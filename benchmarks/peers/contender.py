"""One peer with one workload, in a process of its own: it writes, is checked, and is measured when it is told to.

A process for each keeps threads, memory and patched modules of one from the others. Between its turns it only waits.
"""

import contextlib
import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.data import checksum
from benchmarks.peers.peer import COLD, EPOCHS, RANDOM, SAMPLES, Epoch, Peer, Task, size_on_disk

PATIENCE = 900  # seconds


class Contender:
    """The side of the caller. Every method of `Measuring` can be called here and is carried out there."""

    def __init__(self, peer: Peer, task: Task) -> None:
        self.peer, self.task = peer, task
        self._process: Any = None
        self._connection: Any = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._ask(name, *arguments)

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(self.peer, self.task, other))
            self._process.start()
            other.close()
        self._connection.send((name, arguments))
        if not self._connection.poll(PATIENCE):
            self._process.kill()
            raise RuntimeError(f"{self.peer.name} did not come to an end of {name}{arguments} in {PATIENCE} seconds")
        try:
            result = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.peer.name}: its process died in {name}{arguments}") from None
        if isinstance(result, Exception):
            raise RuntimeError(f"{self.peer.name}, {self.task.source.workload.name}: {name}{arguments}") from result
        return result

    def close(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.join(20)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None


def _serve(peer: Peer, task: Task, connection: Connection) -> None:
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method("fork", force=True)  # as in a script that says nothing, on Linux up to Python 3.13
    with _quietly():
        measuring = Measuring(peer, task)
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = connection.recv()
            try:
                with _quietly():
                    result = getattr(measuring, name)(*arguments)
            except Exception as error:
                result = RuntimeError(f"{type(error).__name__}: {error}")
            connection.send(result)
    measuring.loaders.clear()
    os._exit(0)  # whatever threads and worker processes a peer has left


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Progress bars and greetings go nowhere."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


class Measuring:
    """What is done in the process."""

    def __init__(self, peer: Peer, task: Task) -> None:
        self.peer, self.task = peer, task
        self.loaders: dict[str, Any] = {}
        self.epoch = 0
        peer.load()

    def write(self, smallest: bool = False) -> tuple[float, int]:
        """Seconds and bytes on disk."""
        shutil.rmtree(self.task.folder, ignore_errors=True)
        self.task.folder.mkdir(parents=True)
        start = time.perf_counter()
        self.peer.write(self.task, smallest)
        return time.perf_counter() - start, size_on_disk(self.task.folder)

    def check(self, mode: str) -> None:
        """An epoch: every sample once, and each with the checksum that it has in the source."""
        expected = self.task.source.checksums()
        seen = np.zeros(len(expected), dtype=int)
        for batch in self._next_epoch(mode):
            for index in self._compared(batch, expected):
                seen[index] += 1
        assert (seen == 1).all(), f"{(seen == 0).sum()} samples did not come, {(seen > 1).sum()} came again"

    def _compared(self, batch: Any, expected: Any) -> Sequence[int]:
        """The indices of a batch, after its values were compared with the checksums of all samples of the source."""
        values, indices = self.peer.parts(batch)
        assert len(values) == len(indices)
        if self.peer.is_bit_exact:
            for value, index in zip(values, indices, strict=True):
                assert checksum(value) == expected[index], f"sample {index} is not what the source has"
        return indices

    def measure(self, mode: str, seconds: float, longest: float) -> float:
        """Samples a second."""
        if mode == RANDOM:
            return self._at_random(seconds)
        if mode == SAMPLES:
            return self._rate(mode, seconds, longest, lambda _: 1)
        return self._rate(mode, seconds, longest, self.peer.rows)

    def _rate(self, mode: str, seconds: float, longest: float, rows: Callable[[Any], int]) -> float:
        """From the first batch of an epoch to its last; as many epochs as fill the time.

        One that takes too long, as of a slow peer, is broken off.
        """
        count, spent = 0, 0.0
        while not count or spent < seconds:
            batches = iter(self._next_epoch(mode))
            first, of_epoch = rows(next(batches)), 0
            now = start = time.perf_counter()
            while now - start < longest:
                batch = next(batches, None)  # not `for`: what is its own iterable would begin anew
                if batch is None:
                    total = first + of_epoch
                    assert total == len(self.task.source), f"{total} samples in an epoch of {len(self.task.source)}"
                    break
                of_epoch += rows(batch)
                now = time.perf_counter()
            count, spent = count + of_epoch, spent + now - start
            del batches
        return count / spent

    def _at_random(self, seconds: float) -> float:
        if RANDOM not in self.loaders:
            self._make_room()
            self.loaders[RANDOM] = self.peer.reader(self.task)
        reader = self.loaders[RANDOM]
        self.epoch += 1
        order = np.random.default_rng(self.epoch).permutation(len(self.task.source)).tolist()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            place = count % len(order)
            for index in order[place : place + 10]:  # not all the rest: to copy that takes longer than to read
                sample = reader[index]
                count += 1
            assert int(sample["index"]) == index or not self.peer.keeps_order, f"sample {sample['index']} at {index}"
        rate = count / (time.perf_counter() - start)
        self._compared({"x": [sample["x"]], "index": [sample["index"]]}, self.task.source.checksums())
        return rate

    def _next_epoch(self, mode: str) -> Any:
        if mode not in self.loaders:
            self._make_room()
            self.loaders[mode] = self._loader(mode)
        self.epoch += 1
        return self.loaders[mode](self.epoch)

    def _loader(self, mode: str) -> Epoch:
        if mode == SAMPLES:
            return self.peer.samples(self.task)
        assert mode in (*EPOCHS, COLD)
        return self.peer.epochs(self.task, mode)

    def _make_room(self) -> None:
        if self.peer.is_exclusive:
            self.loaders.clear()
