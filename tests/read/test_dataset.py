"""``CachedDataset`` in the ordinary DataLoader: every sample once an epoch, as it went in."""

import gc
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

import shardcache
from shardcache import Cache, CachedDataset, DamagedBlockError, ShardCacheWarning, StructureError, UsageError
from tests.read.sources import (
    SOURCES,
    Chain,
    Mapped,
    assert_batch,
    assert_epoch,
    assert_same,
    close,
    damaged,
    exhaust,
    load,
    numbers,
    outcome,
)

CacheOf = Callable[..., Cache]


def dataset(cache: Cache, **options: Any) -> CachedDataset:
    """With batches of 16, in a small buffer unless asked for otherwise; lists are meant."""
    options = {"batch_size": 16, "order": "shuffled", "shuffle_buffer": 40, "collate": "list", **options}
    return CachedDataset(cache, **options)


def everything(cache_of: CacheOf, **options: Any) -> Chain:
    return Chain({name: dataset(cache_of(name), with_meta=True, **options) for name in SOURCES})


def assert_everything(loader: DataLoader[Any]) -> None:
    """Whether an epoch of :func:`everything` is whole; workers take turns, so it comes mixed."""
    batches: dict[str, list[Any]] = {name: [] for name in SOURCES}
    for name, batch in loader:
        batches[name].append(batch)
    for name, source in SOURCES.items():
        assert_epoch(batches[name], source)


class TestContents:
    @pytest.mark.parametrize("order", ["shuffled", "stored", "source"])
    @pytest.mark.parametrize("layout", ["shuffled", "source"])
    @pytest.mark.parametrize("name", SOURCES)
    def test_every_sample_comes_once_as_it_went_in(self, cache_of: CacheOf, name: str, layout: str, order: str) -> None:
        source = SOURCES[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShardCacheWarning)  # source order on a shuffled layout
            data = dataset(cache_of(name, layout), order=order, with_meta=True)
        batches = list(load(data))
        seen = assert_epoch(batches, source)
        assert len(batches) == len(data) == -(-len(source) // 16)
        if order == "source" or (layout, order) == ("source", "stored"):
            assert seen == list(range(len(source)))
        elif len(source) > 50:
            assert seen != list(range(len(source)))

    @pytest.mark.filterwarnings("ignore:.*48:shardcache.ShardCacheWarning")
    @pytest.mark.parametrize(
        ("workers", "transport"), [(1, "auto"), (2, "auto"), (3, "auto"), (5, "auto"), (8, "auto"), (2, "torch")]
    )
    def test_with_any_number_of_workers(self, cache_of: CacheOf, workers: int, transport: str) -> None:
        assert_everything(load(everything(cache_of, transport=transport), workers, collate_fn=_as_it_is))

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_with_workers_that_are_not_forked(self, cache_of: CacheOf, method: str) -> None:
        loader = load(everything(cache_of), 2, multiprocessing_context=method, collate_fn=_as_it_is)
        assert_everything(loader)

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("name", ["columns", "detections", "records", "texts"])
    def test_an_ordinary_dataloader_gives_what_a_loader_of_ours_gives(
        self, cache_of: CacheOf, name: str, workers: int
    ) -> None:
        data = dataset(cache_of(name), with_meta=True)
        ordinary, ours = list(load(data, workers)), list(data.loader(workers))
        assert_same(ordinary, ours)
        assert type(ordinary[0]) is tuple

    @pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_with_pinned_memory(self, cache_of: CacheOf, workers: int) -> None:
        for name in ("images", "texts", "detections"):
            data = dataset(cache_of(name), with_meta=True)
            assert_epoch(data.loader(workers, pin_memory=True), SOURCES[name])

    @pytest.mark.parametrize("workers", [0, 3, 8])
    def test_fewer_samples_than_workers(self, cache_of: CacheOf, workers: int) -> None:
        for name in ("one row", "few"):
            for size in (1, 2, 16, None):
                data = dataset(cache_of(name), batch_size=size, shuffle_buffer=1)
                assert len(list(load(data, workers))) == len(data)

    def test_a_batch_of_all_samples_and_more(self, cache_of: CacheOf) -> None:
        for size in (600, 601, 10**6):
            (batch,) = load(dataset(cache_of("images"), batch_size=size, with_meta=True))
            assert_epoch([batch], SOURCES["images"], 600)

    @pytest.mark.parametrize("transform", [False, True])
    def test_records_come_back_as_the_types_that_were_given(self, cache_of: CacheOf, transform: bool) -> None:
        from tests.read.sources import Point

        cache = shardcache.open(cache_of("records").path, types=[Point])
        for point, ordered, _ in load(dataset(cache, transform=_same if transform else None)):
            assert type(point) is Point
            assert list(ordered) == ["b", "a"]


class TestSamples:
    @pytest.mark.parametrize("workers", [0, 3])
    @pytest.mark.parametrize("name", ["images", "texts", "detections", "columns", "records", "single", "one row"])
    def test_without_a_batch_size_samples_come_as_they_went_in(
        self, cache_of: CacheOf, name: str, workers: int
    ) -> None:
        data = dataset(cache_of(name), batch_size=None, with_meta=True)
        seen = []
        for sample, meta in load(data, workers):
            assert meta.valid is True
            assert_same(sample, SOURCES[name][meta.index])
            seen.append(meta.index)
        assert sorted(seen) == list(range(len(SOURCES[name])))
        assert len(data) == len(seen)

    @pytest.mark.parametrize("workers", [0, 1, 2, 4])
    def test_they_come_in_the_same_order_for_any_number_of_workers_that_divides_48(
        self, cache_of: CacheOf, workers: int
    ) -> None:
        cache = cache_of("numbers")
        found = [index for index, _ in load(dataset(cache, batch_size=None), workers)]
        assert found == [index for index, _ in dataset(cache, batch_size=None)]

    def test_a_dataloader_may_batch_them_but_is_told_that_there_is_a_better_way(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of("numbers"), batch_size=None)
        with pytest.warns(ShardCacheWarning, match=r"each worker ends with a short one.*batch_size=None"):
            found = list(DataLoader(data, batch_size=64))
        assert sorted(itertools.chain(*numbers(found))) == list(range(1000))

    @pytest.mark.parametrize("world", [1, 3])
    def test_len_counts_the_samples_of_a_rank(self, cache_of: CacheOf, world: int) -> None:
        seen = []
        for rank in range(world):
            data = dataset(cache_of("numbers"), batch_size=None, rank=rank, world_size=world, remainder="keep")
            found = [index for index, _ in data]
            assert len(data) == len(found)
            seen += found
        assert sorted(seen) == list(range(1000))

    def test_canonical_ranks_are_for_batches(self, cache_of: CacheOf) -> None:
        with pytest.raises(UsageError, match="canonical_ranks=4 needs batch_size"):
            dataset(cache_of("numbers"), batch_size=None, canonical_ranks=4)


class TestOrder:
    """The same batches, whoever reads them."""

    @pytest.mark.parametrize("buffer", [40, 200, None], ids=["lanes", "wider lanes", "full permutation"])
    @pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 8])
    def test_is_the_same_for_every_number_of_workers_that_divides_48(
        self, cache_of: CacheOf, workers: int, buffer: int | None
    ) -> None:
        options = {"batch_size": 8, "shuffle_buffer": buffer}
        found = numbers(load(dataset(cache_of("numbers"), **options), workers))
        assert found == numbers(dataset(cache_of("numbers"), **options))

    @pytest.mark.parametrize("workers", [5, 7])
    def test_has_the_same_batches_for_any_other_number(self, cache_of: CacheOf, workers: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShardCacheWarning)
            found = numbers(load(dataset(cache_of("numbers"), batch_size=8), workers))
        assert sorted(found) == sorted(numbers(dataset(cache_of("numbers"), batch_size=8)))

    def test_differs_with_seed_and_epoch(self, cache_of: CacheOf) -> None:
        found = []
        for seed in (0, 1, 2):
            data = dataset(cache_of("numbers"), seed=seed)
            for epoch in (0, 1, 2):
                data.set_epoch(epoch)
                found.append(numbers(data))
        assert len({str(batches) for batches in found}) == 9

    def test_is_random_also_on_a_source_layout_and_a_sorted_source(self, cache_of: CacheOf) -> None:
        for layout in ("shuffled", "source"):
            data = dataset(cache_of("images", layout), batch_size=60, shuffle_buffer=None)
            for _, labels in data:
                assert len(labels.unique()) > 5

    def test_on_a_shuffled_layout_the_classes_are_mixed_at_any_buffer(self, cache_of: CacheOf) -> None:
        for buffer in (1, "1KiB", 100):
            for _, labels in dataset(cache_of("images"), batch_size=60, shuffle_buffer=buffer):
                assert len(labels.unique()) >= 5

    @pytest.mark.parametrize("world", [1, 2, 3, 6])
    def test_has_the_same_global_batches_for_every_world_size_that_divides_the_canonical_ranks(
        self, cache_of: CacheOf, world: int
    ) -> None:
        def ranks(world: int) -> list[list[int]]:
            shares = [
                numbers(
                    dataset(
                        cache_of("numbers"),
                        batch_size=None,
                        global_batch_size=24,
                        canonical_ranks=6,
                        rank=rank,
                        world_size=world,
                        remainder="pad",
                    )
                )
                for rank in range(world)
            ]
            return [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]

        assert ranks(world) == ranks(1)


class TestRemainder:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("buffer", [40, None], ids=["lanes", "full permutation"])
    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    def test_padding_gives_every_rank_the_same_number_of_batches_and_every_sample_once(
        self, cache_of: CacheOf, world: int, buffer: int | None, workers: int
    ) -> None:
        valid: list[int] = []
        for rank in range(world):
            options = {"rank": rank, "world_size": world, "remainder": "pad", "with_meta": True}
            data = dataset(cache_of("numbers"), shuffle_buffer=buffer, **options)
            batches = list(load(data, workers))
            assert len(batches) == len(data) == -(-1000 // (16 * world))
            for (index, _), meta in batches:
                assert index.tolist() == meta.index.tolist()
                assert len(index) == 16
                valid += index[meta.valid].tolist()
        assert sorted(valid) == list(range(1000))

    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_dropping_gives_every_rank_the_same_number_of_whole_batches(self, cache_of: CacheOf, world: int) -> None:
        seen: list[int] = []
        for rank in range(world):
            for options in ({"drop_last": True}, {"remainder": "drop"}):
                data = dataset(cache_of("numbers"), rank=rank, world_size=world, **options)
                batches = numbers(data)
                assert len(batches) == len(data) == 1000 // (16 * world)
                assert {len(batch) for batch in batches} == {16}
            seen += itertools.chain(*batches)
        assert len(set(seen)) == len(seen)

    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    def test_keeping_gives_every_sample_once_and_an_exact_len_on_each_rank(self, cache_of: CacheOf, world: int) -> None:
        seen: list[int] = []
        for rank in range(world):
            data = dataset(cache_of("numbers"), rank=rank, world_size=world, remainder="keep")
            batches = numbers(data)
            assert len(batches) == len(data)
            seen += itertools.chain(*batches)
        assert sorted(seen) == list(range(1000))

    def test_fewer_samples_than_a_batch(self, cache_of: CacheOf) -> None:
        cache = cache_of("few")
        assert list(dataset(cache, drop_last=True)) == []
        assert len(dataset(cache, drop_last=True)) == 0
        ((_, labels), meta), *rest = dataset(cache, remainder="pad", with_meta=True)
        assert not rest
        assert len(labels) == 16
        assert sorted(meta.index[meta.valid].tolist()) == [0, 1, 2]

    def test_several_ranks_pad_by_default_and_one_keeps(self, cache_of: CacheOf) -> None:
        assert [len(batch) for batch in numbers(dataset(cache_of("numbers")))][-1] == 1000 % 16
        assert [len(batch) for batch in numbers(dataset(cache_of("numbers"), rank=1, world_size=2))][-1] == 16


class TestColumns:
    def test_names_positions_and_inner_names_choose_columns(self, cache_of: CacheOf) -> None:
        images, detections = cache_of("images"), cache_of("detections")
        (labels,) = next(iter(dataset(images, columns=["1"])))
        for columns in ([1], 1, "1", ("1",)):
            assert_same(next(iter(dataset(images, columns=columns))), (labels,))
        batch = next(iter(dataset(detections, columns=["meta", "boxes"])))
        assert list(batch) == ["boxes", "meta"]
        assert list(batch["meta"]) == ["id", "difficult"]
        assert list(next(iter(dataset(detections, columns="meta/id")))["meta"]) == ["id"]

    def test_a_projected_epoch_holds_the_same_as_a_whole_one(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of("images"), columns=["1"], with_meta=True)
        for (labels,), meta in load(data, 2):
            assert_batch(labels, [index // 60 for index in meta.index.tolist()], frozenset({"sample"}))

    @pytest.mark.parametrize("columns", [["nope"], [2], "label"])
    def test_a_column_that_is_not_there_is_an_error_with_the_names_of_those_that_are(
        self, cache_of: CacheOf, columns: Any
    ) -> None:
        with pytest.raises(StructureError, match=r"there is no column .*the columns are 0, 1"):
            dataset(cache_of("images"), columns=columns)

    def test_no_columns_at_all_is_an_error(self, cache_of: CacheOf) -> None:
        with pytest.raises(UsageError, match="columns"):
            dataset(cache_of("images"), columns=[])


class TestDamage:
    """The bytes of a column's values, changed on disk."""

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_error_names_shard_block_and_column_also_from_a_worker(
        self, plain: Cache, tmp_path: Path, workers: int
    ) -> None:
        cache = damaged(plain, tmp_path, 1, 2)
        with pytest.raises(DamagedBlockError, match=r"shard 0+, block 1, column '1'"):
            exhaust(load(dataset(cache), workers))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_column_that_was_not_asked_for_is_never_noticed(
        self, plain: Cache, tmp_path: Path, workers: int
    ) -> None:
        cache = damaged(plain, tmp_path, 1, 2)
        found = [index for (batch,) in load(dataset(cache, columns=[0]), workers) for index in batch.tolist()]
        assert sorted(found) == list(range(3000))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_consumer_that_goes_on_after_an_error_gets_it_again_and_never_a_shorter_epoch(
        self, plain: Cache, tmp_path: Path, workers: int
    ) -> None:
        data = dataset(damaged(plain, tmp_path, 20, 2), order="stored")
        for batches in (iter(data), iter(load(data, workers)), iter(data.loader(workers))):
            outcomes = [outcome(batches) for _ in range(200)]
            assert outcomes == sorted(outcomes)
            assert outcomes.count("16") < 150
            assert outcomes[-1] == "error"
            close(batches)

    def test_other_workers_go_on_until_they_need_what_is_damaged(self, plain: Cache, tmp_path: Path) -> None:
        batches = iter(load(dataset(damaged(plain, tmp_path, 1, 2), batch_size=10), 8))
        outcomes = [outcome(batches) for _ in range(280)]
        for worker in range(8):
            assert outcomes[worker::8] == sorted(outcomes[worker::8])
        assert len({tuple(outcomes[worker::8]) for worker in range(8)}) > 1
        close(batches)


class TestMemory:
    @pytest.mark.parametrize("workers", [1, 4])
    @pytest.mark.parametrize("buffer", [200, "8KiB", 5000])
    def test_the_buffer_is_bounded_by_what_was_asked_for(
        self, cache_of: CacheOf, monkeypatch: pytest.MonkeyPatch, buffer: int | str, workers: int
    ) -> None:
        from shardcache.read import arena, topology

        made = []
        make = arena.Arena.__init__

        def remember(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **kwargs)
            made.append(self)

        cache = cache_of("numbers")
        per_block = cache.manifest.rows_per_block
        monkeypatch.setattr(arena.Arena, "__init__", remember)
        monkeypatch.setattr(topology, "worker", lambda: topology.Worker(0, workers, False))
        list(dataset(cache, shuffle_buffer=buffer))
        asked = buffer if isinstance(buffer, int) else 8192 // 40
        lanes = 48 // workers
        bound = asked // workers + lanes * 3 * per_block + 16 + 4 * per_block
        assert made[0]._slots * per_block <= max(bound, 0 if asked < 4000 else 1000)
        held = sum(fixed._bytes.nbytes for fixed in made[0]._fixed.values())
        assert held <= made[0]._slots * per_block * 40

    def test_an_epoch_leaves_nothing_behind(self, cache_of: CacheOf) -> None:
        data = dataset(cache_of("texts"))

        def objects() -> int:
            gc.collect()
            return len(gc.get_objects())

        list(data)
        before = objects()
        for epoch in range(1, 6):
            data.set_epoch(epoch)
            list(data)
        assert objects() <= before + 50


class TestAround:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_another_dataset_around_it(self, cache_of: CacheOf, workers: int) -> None:
        data = Mapped(dataset(cache_of("numbers")), _doubled)
        assert sorted(index for batch in load(data, workers) for index in batch.tolist()) == list(range(0, 2000, 2))

    def test_an_ordinary_iterable_dataset_is_what_it_is(self, cache_of: CacheOf) -> None:
        assert isinstance(dataset(cache_of("numbers")), IterableDataset)

    def test_a_path_will_do_for_a_cache(self, cache_of: CacheOf) -> None:
        cache = cache_of("numbers")
        assert numbers(dataset(str(cache.path))) == numbers(dataset(cache.path)) == numbers(dataset(cache))  # type: ignore[arg-type]


def _same(sample: Any) -> Any:
    return sample


def _as_it_is(batch: Any) -> Any:
    return batch


def _doubled(batch: Any) -> Any:
    return batch[0] * 2
