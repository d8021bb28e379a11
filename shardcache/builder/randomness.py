"""Whether a dataset gives the same sample twice: what is random in it would be frozen by a cache."""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from shardcache.builder.source import Source
from shardcache.errors import RandomSourceError, SampleError
from shardcache.format import columns
from shardcache.format.columns import Encoded
from shardcache.format.manifest import Manifest
from shardcache.format.nested import Refused
from shardcache.format.split import block_splitter

_SAMPLES = 16  # one that is flipped with a probability of 1/2 passes as not random once in 65,536 times
_ENOUGH, _SECONDS = 3, 1.0  # of a slow dataset fewer are read


@contextmanager
def undisturbed() -> Iterator[None]:
    """The global generators of Python, NumPy and torch go on afterwards as if nobody had drawn from them."""
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    of_torch = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(of_torch)


class Twice:
    """Some samples of a probe are read a second time: which columns differ, and how long it took."""

    def __init__(self, source: Source, plan: Manifest) -> None:
        self._split, self._columns = block_splitter(plan.structure), plan.columns
        self.seconds: list[float] = []
        self.differing: dict[str, int] = {}  # the first sample in which a column differs
        for index in list(source.kept)[:_SAMPLES]:
            if len(self.seconds) >= _ENOUGH and sum(self.seconds) > _SECONDS:
                break
            self._compare(source, index)

    def _compare(self, source: Source, index: int) -> None:
        first = source.kept.pop(index)
        try:
            before = self._encoded(first)  # now: the dataset may change it when it is asked again
            start = time.perf_counter()
            again = source.read(index)
            self.seconds.append(time.perf_counter() - start)
            after = self._encoded(again)
        except (SampleError, Refused):  # the build will come to it
            return
        finally:
            source.kept[index] = first
        for column, one, other in zip(self._columns, before, after, strict=True):
            if one != other:
                self.differing.setdefault(column.name.strip("/") or "sample", index)

    def _encoded(self, sample: Any) -> list[Encoded | None]:
        """The stored form: it is exact to the bit, and NaN equals itself."""
        values = self._split([sample])
        return [columns.encode(column, part) for column, part in zip(self._columns, values, strict=True)]

    def refuse(self) -> None:
        """:class:`RandomSourceError` where something differs."""
        if not self.differing:
            return
        name, index = next(iter(self.differing.items()))
        several = len(self.differing) > 1
        what = f"columns {', '.join(map(repr, self.differing))}" if several else f"column {name!r}"
        raise RandomSourceError(
            f"sample {index} was read twice, and {what} differed: the dataset is random (augmentation?), and a cache "
            "would freeze one draw of it for all epochs. Leave out of the dataset what is random, and give it to "
            "CachedDataset(transform=...), which runs in every epoch; or store one draw with allow_random=True "
            "(--allow-random)"
        )
