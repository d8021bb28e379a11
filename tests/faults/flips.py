"""Bytes flipped, zeroed, swapped, duplicated anywhere in the shards and the manifest."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from shardcache import verify
from shardcache.format import spec
from tests.faults.children import in_children, judge
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import Readable, epoch, readable, rows, victim

FAULT = "bytes flipped, zeroed, swapped, duplicated"
REQUIRED = "typed error naming the place, or right"
SHORT, LONG = 150, 100_000

EVERY_WAY = 20  # in one of so many trials by index, in batches and by verify; else by one of the first two
PAGE = 4096
MAX_RUN = 3 * PAGE

Damage = Callable[[random.Random, bytearray, bytes], None]


def flip_bit(draw: random.Random, data: bytearray, _: bytes) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def change_bytes(draw: random.Random, data: bytearray, _: bytes) -> None:
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        data[draw.randrange(len(data))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])


def zero(draw: random.Random, data: bytearray, _: bytes) -> None:
    start, size = stretch(draw, data)
    data[start : start + size] = bytes(size)


def swap(draw: random.Random, data: bytearray, _: bytes) -> None:
    start, size = stretch(draw, data)
    other = near(draw, len(data) - size)
    data[start : start + size], data[other : other + size] = data[other : other + size], data[start : start + size]


def duplicate(draw: random.Random, data: bytearray, _: bytes) -> None:
    start, size = stretch(draw, data)
    other = near(draw, len(data) - size)
    data[other : other + size] = data[start : start + size]


def shift(draw: random.Random, data: bytearray, _: bytes) -> None:
    """Some bytes are lost, and all behind them move up."""
    start, size = stretch(draw, data)
    data[start:] = data[start + size :] + bytes(size)


def from_another_file(draw: random.Random, data: bytearray, other: bytes) -> None:
    start, size = stretch(draw, data)
    size = min(size, max(0, len(other) - start))
    data[start : start + size] = other[start : start + size]


DAMAGES: tuple[Damage, ...] = (flip_bit, flip_bit, change_bytes, zero, swap, duplicate, shift, from_another_file)


def near(draw: random.Random, end: int) -> int:
    """A place before ``end``; every second time at the start of a page, where LMDB's own numbers are."""
    place = draw.randrange(max(1, end))
    return place - place % PAGE if draw.random() < 0.5 else place


def stretch(draw: random.Random, data: bytearray) -> tuple[int, int]:
    size = draw.choice([1, 2, 8, 16, 100, PAGE, PAGE, draw.randrange(1, MAX_RUN)])
    start = near(draw, len(data))
    return start, min(size, len(data) - start)


class Damaged:
    """Trials on one cache: a file is damaged in place, everything is read, the file is restored."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        self.expected: Readable = readable(path)
        self.files = {
            file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != spec.PROVENANCE_NAME
        }

    def __call__(self, number: int) -> Outcome:
        draw = random.Random(f"{self.seed} {number}")
        name, other = draw.choice(list(self.files)), draw.choice(list(self.files))
        whole, data = self.files[name], bytearray(self.files[name])
        damage = draw.choice(DAMAGES)
        damage(draw, data, self.files[other])
        write(self.path / name, data)
        try:
            outcome = self.read(name, number)
        finally:
            write(self.path / name, whole)
        return Outcome(outcome.kind, f"{damage.__name__} in {name}: {outcome.what}")

    def read(self, name: str, number: int) -> Outcome:
        place = name if name == spec.MANIFEST_NAME else name.removesuffix(".lmdb").replace("-", " ")
        io = ("mmap", "pread")[number % 2]
        if number % EVERY_WAY:
            way = number // 2 % 2
            return judge(lambda: (rows, epoch)[way](self.path, io), self.expected[way], place)
        by_index = judge(lambda: rows(self.path, io), self.expected[0], place)
        in_batches = judge(lambda: epoch(self.path, io), self.expected[1], place)
        if by_index.kind not in ("refused", "right"):
            return by_index
        if in_batches.kind != by_index.kind:
            return Outcome("differs", f"by index {by_index}, in batches {in_batches}")
        if verify(self.path, num_workers=0) and by_index.kind == "refused":
            return Outcome("silent", f"verify finds nothing, a reader has {by_index.what}")
        return by_index


def write(path: Path, data: bytes | bytearray) -> None:
    """In place, as a dying disk does it: the same inode."""
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
        os.utime(file.fileno())  # two writes within a tick of the file system's clock


def run(asked: Asked) -> Figures:
    with victim() as path:
        return in_children(Damaged(path, asked.seed), asked.numbers, prepare=lambda: readable(path))
