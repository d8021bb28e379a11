"""A source that is much slower at random than in its own order gets a warning, and the same bytes."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import shardcache
from shardcache import ShardCacheWarning
from tests.builder.conftest import digests
from tests.builder.sources import Made


class RowGroups:
    """Rows of a Parquet file; the last row group that was decoded is kept, as people write it."""

    def __init__(self, path: str) -> None:
        self.file = parquet.ParquetFile(path)
        self.size = self.file.metadata.row_group(0).num_rows
        self.number, self.group = -1, None

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def __getitem__(self, index: int) -> Any:
        number, row = divmod(index, self.size)
        if number != self.number:
            self.number, self.group = number, self.file.read_row_group(number)
        assert self.group is not None
        return self.group["text"][row].as_py()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("parquet") / "rows.parquet")
    draw = np.random.default_rng(0)
    texts = [str(number) for number in draw.integers(0, 1 << 60, 2_000_000)]
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=50_000)
    return path


def warned(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if one.category is ShardCacheWarning]


def test_row_groups_that_are_decoded_for_each_row_are_warned_of_before_the_build(rows):
    dataset = RowGroups(rows)
    (message,) = warned(lambda: shardcache.estimate(dataset))
    assert "slow to read at random" in message
    assert "layout='source'" in message
    expected = shardcache.estimate(dataset, layout="source")
    assert expected.scattered_ms > 4 * expected.neighbouring_ms
    assert warned(lambda: shardcache.estimate(dataset, layout="source")) == []


class Sleepy(Made):
    """Goes to a far place slowly, as a disk with a head does."""

    place = 0

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.02 * (abs(index - self.place) > 10))
        self.place = index
        return super().__getitem__(index)


def test_a_build_warns_too_and_its_bytes_are_those_of_a_fast_source(tmp_path, monkeypatch):
    monkeypatch.setattr("shardcache.builder.locality._WORTH_SECONDS", 1)
    make = lambda index: np.full(20, index)  # noqa: E731
    (message,) = warned(lambda: build(Sleepy(200, make), tmp_path / "slow"))
    assert "layout='source'" in message
    assert warned(lambda: build(Made(200, make), tmp_path / "fast")) == []
    assert digests(tmp_path / "slow") == digests(tmp_path / "fast")


def build(dataset: Any, path: Path) -> Any:
    return shardcache.build(dataset, path, progress=False)


def test_a_source_that_keeps_all_it_decoded_is_slow_only_once_and_gets_no_warning():
    kept: set[int] = set()

    def make(index: int) -> Any:
        if index // 100 not in kept:
            kept.add(index // 100)
            time.sleep(0.01)
        return index

    assert warned(lambda: shardcache.estimate(Made(200_000, make))) == []


def test_what_would_take_a_moment_longer_is_not_worth_a_word():
    assert warned(lambda: shardcache.estimate(Sleepy(300, lambda index: index))) == []
