"""Samples that cannot be read or stored are left out where that is wanted: listed, counted, the same for any worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardcache
from shardcache import CachedDataset, SampleError, ShardCacheWarning, UsageError
from shardcache.builder.source import Recipe
from shardcache.errors import StaleCacheError
from shardcache.format import spec
from shardcache.registry import spotcheck
from tests.builder.conftest import digests
from tests.builder.sources import Flawed, flawed

SIZE = 300
BAD = sorted({*range(3, SIZE, 17), *range(120, 150), 0, SIZE - 1})
GOOD = [index for index in range(SIZE) if index not in BAD]
OPTIONS: dict[str, Any] = {"on_error": "skip", "max_errors": 100, "block_bytes": 1500, "progress": False}

pytestmark = pytest.mark.usefixtures("many_shards")


def dataset() -> Flawed:
    return Flawed(SIZE, BAD)


@pytest.fixture
def cache(tmp_path: Path) -> shardcache.Cache:
    return shardcache.build(dataset(), tmp_path / "cache", **OPTIONS)


@pytest.mark.parametrize("layout", ["shuffled", "source", "window"])
@pytest.mark.parametrize("block_bytes", [1500, 1])
def test_what_is_kept_is_as_it_was_whatever_the_layout_and_the_number_of_workers(layout, block_bytes, tmp_path):
    options = OPTIONS | {"layout": layout, "block_bytes": block_bytes}
    caches = [shardcache.build(flawed, tmp_path / str(workers), num_workers=workers, **options) for workers in (0, 2)]
    assert digests(tmp_path / "0") == digests(tmp_path / "2")
    cache = caches[0]
    assert (len(cache), cache.manifest.samples) == (len(GOOD), SIZE)
    assert [cache[index]["number"] for index in range(len(cache))] == GOOD
    assert [sample["number"] for sample in cache[:]] == GOOD
    assert [cache.source_index(index) for index in range(len(cache))] == GOOD
    assert cache.source_index(-1) == GOOD[-1]
    assert cache.skipped.tolist() == BAD
    assert cache.schema["number"].batch == "tensor"  # a row that is skipped costs no column its form
    assert shardcache.verify(cache.path)


def test_the_list_says_why(cache):
    listed = cache.skipped_samples()
    assert [one.index for one in listed] == BAD
    why = {one.index: (one.error, one.message) for one in listed}
    assert why[3] == ("ValueError", "no sample 3")
    assert why[0] == ("UnsupportedTypeError", why[0][1])
    assert "column 'number': a value of type set" in why[0][1]
    (cache.path / spec.SKIPPED_NAME).write_text("not what was written")
    assert [(one.index, one.error) for one in cache.skipped_samples()] == [(index, "") for index in BAD]


@pytest.mark.parametrize("order", [{"order": "stored"}, {"order": "source"}, {"shuffle": True}, {"shuffle_buffer": 20}])
@pytest.mark.filterwarnings("ignore:source order on a cache of shuffled layout")
def test_every_order_yields_what_was_kept_and_says_which_sample_it_is(cache, order):
    order = {"shuffle": True, **order} if "shuffle_buffer" in order else order
    batches = {}
    for workers in (0, 2):
        loader = CachedDataset(cache, batch_size=7, with_meta=True, **order).loader(num_workers=workers)
        batches[workers] = [(batch["number"].tolist(), meta.index.tolist()) for batch, meta in loader]
    assert batches[0] == batches[2]
    numbers, indices = ([x for batch in batches[0] for x in batch[k]] for k in (0, 1))
    assert sorted(numbers) == GOOD
    assert [cache[index]["number"] for index in indices] == numbers
    if order == {"order": "source"}:
        assert numbers == GOOD


def test_views_count_what_was_kept(cache):
    some = cache.select([5, 1, 200])
    assert [sample["number"] for sample in some] == [GOOD[5], GOOD[1], GOOD[200]]
    assert [some.source_index(index) for index in range(3)] == [GOOD[5], GOOD[1], GOOD[200]]
    parts = cache.split({"a": 0.5, "b": 0.5})
    assert sorted(sample["number"] for part in parts.values() for sample in part) == GOOD
    odd = cache.filter("number", lambda number: number % 2 == 1)
    assert [sample["number"] for sample in odd] == [number for number in GOOD if number % 2]
    for batch, meta in CachedDataset(odd, batch_size=50, with_meta=True, order="stored"):
        assert [cache[index]["number"] for index in meta.index.tolist()] == batch["number"].tolist()


def test_too_many_end_the_build_with_the_first_of_them(tmp_path):
    for workers in (0, 2):
        with pytest.raises(
            SampleError, match=r"16 samples could not .* max_errors allows 15: sample \d+: \w+: .*; sample"
        ):
            shardcache.build(
                flawed, tmp_path / "c", **OPTIONS | {"max_errors": 15, "num_workers": workers, "block_bytes": 1}
            )
    with pytest.raises(SampleError, match="max_errors allows 16 by default"):
        shardcache.build(flawed, tmp_path / "d", **OPTIONS | {"max_errors": None})


@pytest.mark.parametrize("bad", [range(SIZE), range(1, SIZE)])
def test_a_source_of_nothing_but_errors_is_said_to_be_one(bad, tmp_path):
    with pytest.raises(SampleError, match=r"none of the|max_errors allows 100"):
        shardcache.build(Flawed(SIZE, bad), tmp_path / "c", **OPTIONS)


def test_without_it_the_first_one_ends_the_build(tmp_path):
    with pytest.raises(SampleError, match=r"dataset\[3\] raised ValueError: no sample 3"):
        shardcache.build(Flawed(SIZE, [3]), tmp_path / "c", progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', was 'ignore'"),
        ({"on_error": "skip", "max_errors": -1}, "max_errors must be 0 or more"),
        ({"on_error": "skip", "max_errors": 0.5}, "max_errors must be 0 or more"),
        ({"max_errors": 5}, "max_errors is for on_error='skip'"),
        ({"shuffle_window": 5, "layout": "source"}, "shuffle_window is for layout='window'"),
        ({"layout": "window", "shuffle_window": 0}, "shuffle_window must be"),
    ],
)
def test_options_without_sense_are_refused(options, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        shardcache.build(dataset(), tmp_path / "c", **options)


def test_the_number_is_shown_and_nothing_is_where_nothing_was_skipped(cache, tmp_path):
    assert f"{len(GOOD)} samples ({len(BAD)} skipped), " in repr(cache)
    assert (cache.info()["samples"], cache.info()["skipped"]) == (len(GOOD), len(BAD))
    whole = shardcache.build([1, 2, 3], tmp_path / "d", on_error="skip", progress=False)
    assert (len(whole.skipped), whole.skipped_samples(), whole.info()["skipped"]) == (0, [], 0)
    assert "skipped" not in repr(whole)
    assert not (tmp_path / "d" / spec.SKIPPED_NAME).exists()


@pytest.mark.parametrize("then", ["skip", "raise"])
def test_an_interrupted_build_goes_on_with_what_was_skipped_in_it(then, tmp_path):
    whole = shardcache.build(dataset(), tmp_path / "whole", **OPTIONS)
    broken = Flawed(SIZE, BAD)
    broken.stop_after = 250
    with pytest.raises(KeyboardInterrupt):
        shardcache.build(broken, tmp_path / "c", **OPTIONS)
    done = len(list((tmp_path / "c.partial").glob("shard-*.json")))
    assert 0 < done < len(whole.manifest.shards)
    if then == "raise":
        with pytest.raises(shardcache.SourceError):  # what was skipped is read again, and raises
            shardcache.build(dataset(), tmp_path / "c", **{**OPTIONS, "on_error": "raise", "max_errors": None})
    again = dataset()
    shardcache.build(again, tmp_path / "c", **OPTIONS)
    assert digests(tmp_path / "c") == digests(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_repair_reads_nothing_that_was_skipped_even_where_it_could_be_read_by_now(cache, workers):
    before = digests(cache.path)
    for number in (0, 2):
        path = cache.path / spec.shard_name(number)
        path.write_bytes(path.read_bytes()[:-100])
    report = shardcache.verify(cache.path)
    assert not set(report.source_indices().tolist()) & set(BAD)
    done = shardcache.repair(cache.path, Flawed(SIZE, []), num_workers=workers, progress=False)
    assert done.restored == (0, 2)
    assert digests(cache.path) == before


def test_a_spot_check_compares_what_was_kept(cache):
    spotcheck.check(cache, Recipe(flawed, None), 60)
    with pytest.raises(StaleCacheError, match=r"sample \d+, column 'x'"):
        spotcheck.check(cache, Recipe(flawed, {"offset": 1}), 5)


def test_on_corrupt_leaves_out_the_damaged_ones_too(cache):
    (cache.path / spec.shard_name(1)).unlink()
    with pytest.warns(ShardCacheWarning, match="skipped"):
        batches = list(CachedDataset(cache, batch_size=8, order="stored", on_corrupt="skip", with_meta=True))
    there = [int(n) for batch, meta in batches for n, valid in zip(batch["number"], meta.valid, strict=True) if valid]
    lost = shardcache.verify(cache.path).source_indices().tolist()
    assert sorted([*there, *lost]) == GOOD


def test_memory_that_ran_out_is_no_bad_sample(tmp_path):
    class Large(Flawed):
        def __getitem__(self, index: int) -> Any:
            return np.empty(1 << 62, np.uint8) if index == 7 else super().__getitem__(index)

    with pytest.raises(SampleError, match="MemoryError"):
        shardcache.build(Large(SIZE, []), tmp_path / "c", **OPTIONS)
