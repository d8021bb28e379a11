"""Valid values exchanged between blocks, columns, rows, shards and caches; files between caches.

The seals of the files are made to fit each time, so that nothing but a value's own checksum can tell.
"""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from shardcache.format import manifest, pages, shard, spec
from tests.faults.children import in_children, judge
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import Readable, Victim, build, epoch, readable, rows, victim

FAULT = "valid values exchanged (blocks, columns, shards, caches)"
REQUIRED = "detected"
SHORT, LONG = 200, 1 << 30  # at most: there are as many trials as pairs

SMALL = 12  # samples of the cache of which all pairs are tried


class Value(NamedTuple):
    cache: Path
    shard: int
    key: bytes
    data: bytes


def values_of(cache: Path) -> list[Value]:
    found = []
    for number in range(len(manifest.read(cache).shards)):
        path = cache / spec.shard_name(number)
        data = path.read_bytes()
        with path.open("rb") as file:
            for key, offset, size in pages.values(file.fileno(), len(data), path.name):
                found.append(Value(cache, number, key, data[offset : offset + size]))
    return found


def put(cache: Path, values: list[Value]) -> None:
    """Write the shards of a cache anew, and a manifest whose seals and digest fit them."""
    seals = list(manifest.read(cache).shards)
    for number in sorted({value.shard for value in values}):
        path = cache / spec.shard_name(number)
        path.unlink()
        with shard.ShardWriter(path) as writer:
            for value in sorted(values, key=lambda value: value.key):
                if value.shard == number:
                    writer.put(value.key, value.data)
            seals[number] = writer.finish()
    whole = msgspec.structs.replace(manifest.read(cache), shards=tuple(seals))
    (cache / spec.MANIFEST_NAME).write_bytes(manifest.encode(whole))


class Exchanged:
    """Trial n: the two values of pair n have changed places, in one cache or between two."""

    def __init__(self, path: Path, other: Path, pairs: list[tuple[Value, Value]]) -> None:
        self.path, self.other, self.pairs = path, other, pairs
        self.expected: Readable = readable(path)
        self.whole = {file: file.read_bytes() for file in path.iterdir()}
        self.values = values_of(path)

    def __call__(self, number: int) -> Outcome:
        one, two = self.pairs[number]
        changed = {(one.shard, one.key): two.data}
        if two.cache == one.cache:
            changed[two.shard, two.key] = one.data
        touched = {at for at, _ in changed}
        values = [
            value._replace(data=changed.get((value.shard, value.key), value.data))
            for value in self.values
            if value.shard in touched
        ]
        put(self.path, values)
        try:
            return self.read(one, two)
        finally:
            for file, data in self.whole.items():
                file.write_bytes(data)
                os.utime(file)

    def read(self, one: Value, two: Value) -> Outcome:
        what = f"shard {one.shard}, key {one.key.hex()} with shard {two.shard} of {two.cache.name}, {two.key.hex()}"
        for number, read in enumerate((rows, epoch)):
            outcome = judge(lambda read=read: read(self.path), self.expected[number], "shard ")
            if outcome.kind != "refused":
                kind = "silent" if outcome.kind == "right" else outcome.kind
                return Outcome(kind, f"{what}: {outcome.what}")
        return Outcome("refused", f"{what}: {outcome.what}")


def run(asked: Asked) -> Figures:
    """All pairs of values of a small cache, and each of its values with every one of the same key of another cache."""
    with victim(size=SMALL) as path:
        other = path.with_name("other")
        build(Victim(SMALL, salt=1), other)
        here, there = values_of(path), values_of(other)
        pairs = list(itertools.combinations(here, 2))
        pairs += [(one, two) for one in here for two in there if one.key == two.key]
        trial = Exchanged(path, other, asked.order(pairs))
        return in_children(trial, asked.within(len(pairs)), prepare=lambda: readable(path))
