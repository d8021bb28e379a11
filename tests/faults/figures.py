"""Which trials of a campaign are asked for, what it came to, and which of them broke the promise."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

KEPT = 100  # misses whose text is kept

# What may happen to a trial without breaking a promise. Everything else is a miss.
GOOD = frozenset({"refused", "right", "served", "old", "new", "nothing", "continued", "flat", "works"})

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """``trials`` trials from number ``first`` on. What a trial does follows from ``seed`` and its number alone."""

    trials: int
    seed: int = 0
    first: int = 0

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.trials)

    def within(self, count: int) -> range:
        """The numbers, where there are no more than ``count`` trials."""
        return range(min(self.first, count), min(self.first + self.trials, count))

    def order(self, items: Sequence[T]) -> list[T]:
        """Items in the order in which their trials are done: some of them are a fair sample."""
        return random.Random(self.seed).sample(items, len(items))


@dataclass(frozen=True)
class Outcome:
    """How one trial ended: ``refused`` (a typed error that names the place), ``right`` (the data that were built),
    ``silent`` (other data), ``unnamed``, ``exception``, ``signal``, ``hang``, ``memory``, ...
    """

    kind: str
    what: str = ""


@dataclass
class Figures:
    counts: Counter[str] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)
    skipped: str = ""  # why nothing could be tried here
    notes: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome, trial: object) -> None:
        self.counts[outcome.kind] += 1
        if outcome.kind not in GOOD and len(self.misses) < KEPT:
            self.misses.append(f"trial {trial}: {outcome.kind}: {outcome.what}")

    def __iadd__(self, other: "Figures") -> "Figures":
        self.counts += other.counts
        self.misses = (self.misses + other.misses)[:KEPT]
        self.notes += other.notes
        return self

    @property
    def trials(self) -> int:
        return self.counts.total()

    @property
    def missed(self) -> int:
        return sum(count for kind, count in self.counts.items() if kind not in GOOD)

    def __bool__(self) -> bool:
        """Whether the promise was kept: something was tried, and nothing missed."""
        return self.trials > 0 and not self.missed

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        return ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.counts.items()))
