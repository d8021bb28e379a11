"""Datasets that are built in other processes too, so they lie in a module of their own."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Made:
    """``size`` samples, each made by a function of its index; counts how often each was read."""

    def __init__(self, size: int, make: Callable[[int], Any]) -> None:
        self.size, self.make = size, make
        self.reads: dict[int, int] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        self.reads[index] = self.reads.get(index, 0) + 1
        return self.make(index)


def mixed(index: int) -> dict[str, Any]:
    draw = np.random.default_rng(index)
    return {
        "image": draw.integers(0, 9, (8, 8, 3), np.uint8),
        "label": index % 10,
        "text": f"sample {index} " * (index % 5),
        "boxes": draw.random((index % 4, 4), np.float32),
        "extra": None if index % 3 else {"id": index, "tags": ["a"] * (index % 3)},
    }


def factory(size: int = 400) -> Made:
    return Made(size, mixed)


class Traced:
    """Writes down each index that is read, whichever process reads it.

    It may be slow. At the sample ``deadly`` a worker process ends, by itself or (``hangs``) when it is ended; only once
    where a ``flag`` is given, which is a file.
    """

    def __init__(
        self,
        size: int,
        log: str,
        *,
        delay: float = 0.0,
        deadly: int = -1,
        flag: str = "",
        code: int = 0,
        hangs: bool = False,
        has_child: bool = False,
    ) -> None:
        self.size, self.log, self.delay = size, Path(log), delay
        self.deadly, self.flag, self.code, self.hangs, self.has_child = deadly, flag, code, hangs, has_child

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        with self.log.open("a") as file:
            file.write(f"{index} {os.getpid()}\n")
        is_parent = os.environ.get("SHARDCACHE_TEST_PARENT") == str(os.getpid())
        if index == self.deadly and not is_parent and not (self.flag and Path(self.flag).exists()):
            if self.flag:
                Path(self.flag).touch()
            self._end()
        time.sleep(self.delay)
        return np.full(200, index, np.int64), f"text {index}"

    def _end(self) -> None:
        if self.has_child:
            if not (child := os.fork()):  # it has all that its parent has open
                time.sleep(100)
                os._exit(0)
            Path(self.flag).write_text(str(child))
        if self.hangs:
            time.sleep(1000)
        if self.code:
            os._exit(self.code)
        os.kill(os.getpid(), signal.SIGKILL)


class Unyielding(Traced):
    """Is, at the sample ``deadly``, for minutes in code that lets no other thread of the process run."""

    def _end(self) -> None:
        ctypes.PyDLL(None).sleep(600)


def traced(**options: Any) -> Traced:
    return Traced(**options)


class OtherLength(Made):
    """Says another length in any process but the first."""

    def __len__(self) -> int:
        return self.size if os.environ.get("SHARDCACHE_TEST_PARENT") == str(os.getpid()) else self.size + 1


class NoFork(Made):
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("this dataset holds a database connection")


class Flawed:
    """``size`` samples, of which some cannot be read, and every third of those not be stored."""

    def __init__(self, size: int, bad: Iterable[int], offset: int = 0) -> None:
        self.size, self.bad, self.offset = size, frozenset(bad), offset
        self.stop_after, self.reads = -1, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        if self.reads == self.stop_after:
            raise KeyboardInterrupt
        if index in self.bad and index % 6:
            raise ValueError(f"no sample {index}")
        x = np.full((3, 4), index + self.offset, np.float32)
        return {"x": x, "number": {index} if index in self.bad else index, "text": "x" * (index % 5)}


def flawed(offset: int = 0) -> Flawed:
    return Flawed(300, {*range(3, 300, 17), *range(120, 150), 0, 299}, offset)


class Endless(torch.utils.data.IterableDataset):
    """``size`` samples that can only be iterated, and may break or be interrupted at one; counts how many it made."""

    def __init__(
        self, size: int, *, start: int = 0, bad: Iterable[int] = (), fails_at: int = -1, stops_at: int = -1
    ) -> None:
        self.size, self.start, self.bad, self.made = size, start, frozenset(bad), 0
        self.fails_at, self.stops_at = fails_at, stops_at

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self.start, self.size):
            self.made += 1
            if index == self.fails_at:
                raise OSError("the line is dead")
            if index == self.stops_at:
                raise KeyboardInterrupt
            yield {"x": np.full((3, 4), index, np.float32), "number": {index} if index in self.bad else index}


class Skipping(Endless):
    """The same with the method by which Hugging Face's iterable datasets go on in the middle."""

    def skip(self, count: int) -> "Skipping":
        self.rest = Skipping(self.size, start=self.start + count, bad=self.bad)
        return self.rest


def numbers(size: int = 2000) -> Iterator[Any]:
    yield from Endless(size)


class Logged(Made):
    """Writes down each process that makes it or loads it from a pickle; may fail at a sample."""

    def __init__(self, size: int, log: str, bad: int = -1) -> None:
        super().__init__(size, mixed)
        self.log, self.bad = log, bad
        self._say()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._say()

    def __getitem__(self, index: int) -> Any:
        if index == self.bad:
            raise KeyError("lost key")
        return super().__getitem__(index)

    def _say(self) -> None:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
