"""Arguments that contradict each other are refused with what to write instead; sizes are what was asked for."""

import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from shardcache import Cache, CachedDataset, CacheNotFoundError, ShardCacheWarning, UsageError
from shardcache.read.settings import parse_bytes

CacheOf = Callable[..., Cache]


def dataset(cache_of: CacheOf, **options: Any) -> CachedDataset:
    return CachedDataset(cache_of("numbers"), **{"batch_size": 8, "order": "stored", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an int of 1 or more, was 0"),
        ({"batch_size": -4}, "batch_size must be an int of 1 or more"),
        ({"batch_size": 2.0}, r"batch_size must be an int of 1 or more, was 2\.0"),
        ({"batch_size": True}, "batch_size must be an int of 1 or more"),
        ({"batch_size": None, "global_batch_size": 0}, "global_batch_size must be"),
        ({"global_batch_size": 9}, "batch_size=8 on 1 ranks contradicts global_batch_size=9"),
        (
            {"batch_size": None, "global_batch_size": 9, "rank": 0, "world_size": 2},
            r"global_batch_size=9 must be a multiple of the world size \(2\)",
        ),
        ({"canonical_ranks": 3}, r"a global batch of 8 must be a multiple of canonical_ranks \(3\)"),
        ({"canonical_ranks": 0}, "canonical_ranks must be an int of 1 or more"),
        ({"order": "random"}, "order must be 'shuffled', 'source' or 'stored', was 'random'"),
        ({"shuffle": True}, "shuffle=True contradicts order='stored'"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be 1 sample or more, or bytes like '64MiB', was 0"),
        ({"shuffle_buffer": 10.5}, "shuffle_buffer must be"),
        ({"shuffle_buffer": "many"}, "shuffle_buffer must be a number of samples or of bytes like '64MiB', was 'many'"),
        ({"shuffle_buffer": "-1MiB"}, "shuffle_buffer must be"),
        ({"shuffle_buffer": "0MiB"}, "shuffle_buffer must be"),
        ({"seed": 1.5}, r"seed must be an int, was 1\.5"),
        ({"remainder": "wrap"}, "remainder must be 'drop', 'pad' or 'keep', was 'wrap'"),
        ({"remainder": "pad", "drop_last": True}, "drop_last=True contradicts remainder='pad'"),
        ({"rank": 1}, "rank and world_size go together"),
        ({"rank": 2, "world_size": 2}, r"rank must be 0\.\.1 in a world of size 2, was 2"),
        ({"transport": "ring"}, "transport must be 'auto' or 'torch', was 'ring'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_what_has_no_sense_is_refused(cache_of: CacheOf, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataset(cache_of, **options)


def test_an_unknown_option_is_refused(cache_of: CacheOf) -> None:
    with pytest.raises(TypeError, match="num_workers"):
        dataset(cache_of, num_workers=4)


@pytest.mark.parametrize(
    "thing", [list(range(10)), range(3), {"a": 1}, None, 3, object()], ids=lambda x: type(x).__name__
)
def test_an_ordinary_dataset_is_told_to_be_built_first(thing: Any) -> None:
    with pytest.raises(UsageError, match=rf"was given a {type(thing).__qualname__}: build one first.*shardcache.build"):
        CachedDataset(thing, batch_size=4)


def test_a_path_where_there_is_no_cache_says_so(tmp_path: Any) -> None:
    for path in (tmp_path, tmp_path / "missing", os.fspath(tmp_path)):
        with pytest.raises(CacheNotFoundError, match="not a cache"):
            CachedDataset(path, batch_size=4)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1.5 KiB", 1536), ("10", 10), ("10B", 10), ("2 gb", 2 * 10**9), (" 3kib ", 3072)],
)
def test_bytes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


class TestSourceOrder:
    def test_on_a_shuffled_layout_names_the_factor_and_both_remedies(self, cache_of: CacheOf) -> None:
        with pytest.warns(ShardCacheWarning) as caught:
            dataset(cache_of, order=None)
        (warning,) = caught
        assert re.search(r"about (8|9|10) times as many rows", str(warning.message))
        assert "layout='source'" in str(warning.message)
        assert "order='stored'" in str(warning.message)
        assert warning.filename == __file__

    @pytest.mark.parametrize("options", [{"order": "stored"}, {"order": "shuffled"}, {"order": None, "shuffle": True}])
    def test_is_not_mentioned_in_another_order(self, cache_of: CacheOf, options: Any) -> None:
        dataset(cache_of, **options)

    def test_is_not_mentioned_on_a_source_layout(self, cache_of: CacheOf) -> None:
        CachedDataset(cache_of("numbers", "source"), batch_size=8)

    def test_is_not_mentioned_where_it_costs_next_to_nothing(self, cache_of: CacheOf) -> None:
        dataset(cache_of, order="source", batch_size=900)


def test_every_warning_points_at_the_line_of_the_user(cache_of: CacheOf) -> None:
    for make in (
        lambda: dataset(cache_of, order="source"),
        lambda: CachedDataset(cache_of("texts"), batch_size=4, order="stored"),
        lambda: CachedDataset(
            cache_of("numbers"), batch_size=4, order="stored", rank=0, world_size=2, canonical_ranks=3
        ),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make()
        assert [warning.filename for warning in caught] == [__file__]
