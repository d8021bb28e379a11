"""Where single samples lie: the same before and after it was written down."""

from typing import Any

import numpy as np
import pytest

from shardcache.format.permutation import Permutation, Windows
from shardcache.read import places
from shardcache.read.places import Places


class Counted(Permutation):
    """How many times it was asked, for one number and for many."""

    def __init__(self, length: int, key: int) -> None:
        super().__init__(length, key)
        self.single = self.many = 0

    def inverse(self, index: Any) -> Any:
        """See `Permutation.inverse`."""
        if isinstance(index, int):
            self.single += 1
        else:
            self.many += 1
        return super().inverse(index)


@pytest.mark.parametrize("permutation", [Permutation(1000, 3), Windows(1000, 64, 3), Permutation(1, 3)])
def test_each_row_is_the_one_of_the_permutation(permutation: Any) -> None:
    found = Places(permutation)
    wanted = permutation.inverse(np.arange(permutation.length)).tolist()
    for _ in range(2):
        rows = [found.row(source) for source in range(permutation.length)]
        assert rows == wanted
        assert set(map(type, rows)) == {int}


def test_a_short_permutation_is_written_down_once_it_was_asked_for_often() -> None:
    permutation = Counted(3200, 1)
    found = Places(permutation)
    for source in range(3200):
        found.row(source)
    assert (permutation.single, permutation.many) == (3200 // 32, 1)


def test_a_long_one_never_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_TABLE", 3199)
    permutation = Counted(3200, 1)
    found = Places(permutation)
    for source in range(3200):
        found.row(source)
    assert (permutation.single, permutation.many) == (3200, 0)
