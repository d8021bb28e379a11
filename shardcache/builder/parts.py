"""A build that is divided among jobs that know nothing of each other but the directory: parts, and what joins them.

Every part draws up the same plan; whoever is first writes it down, and the others must have the same. Part k of n owns
the k-th run of consecutive shards. Jobs may run at the same time, again, and in any order.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shardcache.errors import UsageError
from shardcache.format.manifest import Manifest

_NAME = re.compile(r"part-(\d+)-of-(\d+)\.(lock|json)")
_MAX_PARTS = 1 << 16
_SHOWN = 8


class Part(msgspec.Struct, frozen=True, order=True):
    """Part ``number`` of ``of``, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        return f"part-{self.number}-of-{self.of}"

    def shards(self, plan: Manifest) -> range:
        """The shards of this part."""
        return range((self.number - 1) * plan.shard_count // self.of, self.number * plan.shard_count // self.of)


def as_part(given: object) -> Part | None:
    """What the user gave as ``part=``."""
    if given is None:
        return None
    if not (isinstance(given, Sequence) and len(given) == 2 and all(type(number) is int for number in given)):
        raise UsageError(f"part must be a pair (number, of), was {given!r}")
    part = Part(*given)
    if not 1 <= part.number <= part.of <= _MAX_PARTS:
        raise UsageError(f"part must be (1, n) to (n, n), with n at most {_MAX_PARTS}, was {given!r}")
    return part


def parts_in(directory: Path) -> set[Part]:
    """The parts that were ever begun there."""
    found = map(_NAME.fullmatch, os.listdir(directory))
    return {Part(int(match[1]), int(match[2])) for match in found if match}


def described(shards: Sequence[int], plan: Manifest, parts: set[Part]) -> str:
    """Shards by the parts that they belong to, where ``parts`` says how many there are."""
    divisions = {part.of for part in parts}
    if len(divisions) != 1:
        return f"shards {_ranges(shards)}"
    of, wanted = divisions.pop(), set(shards)
    every = [Part(number, of) for number in range(1, of + 1)]
    theirs = [(part, [number for number in part.shards(plan) if number in wanted]) for part in every]
    texts = [f"part {part} (shards {_ranges(numbers)})" for part, numbers in theirs if numbers]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more parts" if len(texts) > _SHOWN else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as "00003-00007, 00009"."""
    there = set(numbers)
    starts = [number for number in numbers if number - 1 not in there]
    ends = [number for number in numbers if number + 1 not in there]
    runs = zip(starts, ends, strict=True)
    texts = [f"{start:05d}" if start == end else f"{start:05d}-{end:05d}" for start, end in runs]
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
