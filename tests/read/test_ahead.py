"""Threads that decode ahead: the same batches, bounded, and nothing left when they are no longer wanted."""

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardcache import Cache, CachedDataset, ShardCacheWarning, UsageError
from shardcache.read import ahead, recipe
from shardcache.read.blocks import Blocks
from tests.read.sources import SOURCES, assert_epoch, close, damaged, load, numbers, outcome

CacheOf = Callable[..., Cache]


def dataset(cache: Cache, threads: int, **options: Any) -> CachedDataset:
    options = {"batch_size": 16, "order": "shuffled", "shuffle_buffer": 40, "collate": "list", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShardCacheWarning)  # source order on a shuffled layout
        return CachedDataset(cache, threads=threads, **options)


def decoding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("shardcache-decode")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not decoding()


class TestTheSameBatches:
    @pytest.mark.parametrize("threads", [1, 2, 5])
    @pytest.mark.parametrize("order", ["shuffled", "stored", "source"])
    @pytest.mark.parametrize("name", SOURCES)
    def test_of_every_source_in_every_order(self, cache_of: CacheOf, name: str, order: str, threads: int) -> None:
        batches = list(dataset(cache_of(name), threads, order=order, with_meta=True))
        without = [meta.index.tolist() for _, meta in dataset(cache_of(name), 0, order=order, with_meta=True)]
        assert [meta.index.tolist() for _, meta in batches] == without
        assert_epoch(batches, SOURCES[name])

    @pytest.mark.parametrize("threads", [1, 2, 3, 7, 48, 60])
    def test_of_any_number_of_threads(self, cache_of: CacheOf, threads: int) -> None:
        cache = cache_of("numbers")
        assert numbers(dataset(cache, threads)) == numbers(dataset(cache, 0))

    @pytest.mark.parametrize("options", [{"batch_size": None}, {"shuffle_buffer": 10_000}, {"remainder": "drop"}])
    def test_as_samples_in_a_full_permutation_and_without_the_last(
        self, cache_of: CacheOf, options: dict[str, Any]
    ) -> None:
        cache = cache_of("numbers")
        options |= {"with_meta": True}
        found, expected = (
            [(str(item), str(meta)) for item, meta in dataset(cache, threads, **options)] for threads in (2, 0)
        )
        assert found == expected

    @pytest.mark.parametrize("rank", [0, 1, 2])
    def test_on_each_rank(self, cache_of: CacheOf, rank: int) -> None:
        options = {"rank": rank, "world_size": 3, "batch_size": 16, "canonical_ranks": 6}
        cache = cache_of("numbers")
        assert numbers(dataset(cache, 2, **options)) == numbers(dataset(cache, 0, **options))

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_in_worker_processes(self, cache_of: CacheOf, method: str) -> None:
        cache = cache_of("numbers")
        loader = load(dataset(cache, 2), 2, multiprocessing_context=method)
        assert numbers(loader) == numbers(dataset(cache, 0))

    def test_from_any_step_on(self, cache_of: CacheOf) -> None:
        cache = cache_of("numbers")
        whole = numbers(dataset(cache, 0))
        for step in (1, 30, len(whole) - 1, len(whole)):
            data = dataset(cache, 3)
            data.resume(epoch=0, step=step)
            assert numbers(data) == whole[step:]

    def test_epoch_after_epoch_without_end(self, cache_of: CacheOf) -> None:
        cache = cache_of("numbers")
        found, expected = (numbers(itertools.islice(dataset(cache, n, epochs=None), 150)) for n in (2, 0))
        assert found == expected


class TestInTheConsumersThread:
    @pytest.mark.parametrize("which", ["transform", "collate_fn", "batch_transform"])
    def test_the_users_own_code_runs(self, cache_of: CacheOf, which: str) -> None:
        ran_in = set()

        def remember(value: Any) -> Any:
            ran_in.add(threading.current_thread())
            return value

        for _ in dataset(cache_of("numbers"), 2, **{which: remember}):
            pass
        assert ran_in == {threading.current_thread()}


class TestBounds:
    def test_no_more_is_decoded_ahead_than_some_rounds(
        self, cache_of: CacheOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[int] = []
        give = ahead.Pipeline.draft

        def draft(self: Any, of: list[int], rows: Any) -> Any:
            steps.extend(of)
            return give(self, of, rows)

        monkeypatch.setattr(ahead.Pipeline, "draft", draft)
        monkeypatch.setattr(recipe, "ROWS_AT_ONCE", 32)  # two batches
        for taken, _ in enumerate(dataset(cache_of("numbers"), 3), start=1):
            assert len(steps) <= taken + 3 * 2 * (ahead.ROUNDS + 1)
        assert len(steps) == taken > 3 * 2 * (ahead.ROUNDS + 1)

    @pytest.mark.parametrize("order", ["shuffled", "stored"])
    def test_no_block_is_decoded_by_two_threads_but_at_the_ends_of_runs(
        self, cache_of: CacheOf, monkeypatch: pytest.MonkeyPatch, order: str
    ) -> None:
        cache = cache_of("numbers")
        read: list[int] = []
        give = Blocks.read

        def remember(self: Blocks, number: int, *args: Any) -> Any:
            read.append(number)
            return give(self, number, *args)

        monkeypatch.setattr(Blocks, "read", remember)
        counts = []
        for threads in (0, 4):
            read.clear()
            numbers(dataset(cache, threads, order=order, batch_size=4))
            counts.append(len(read))
        assert counts[1] <= counts[0] * 1.5


class TestTheEnd:
    def test_leaving_early_leaves_no_thread(self, cache_of: CacheOf) -> None:
        for _ in range(5):
            for _ in dataset(cache_of("numbers"), 4):
                assert decoding()
                break
            assert not decoding()

    def test_an_iterator_that_is_dropped_leaves_no_thread(self, cache_of: CacheOf) -> None:
        batches = iter(dataset(cache_of("numbers"), 2))
        next(batches)
        assert decoding()
        del batches
        assert not decoding()

    def test_an_error_comes_where_its_batch_would_and_stays(self, plain: Cache, tmp_path: Path) -> None:
        cache = damaged(plain, tmp_path, 20, 2)
        before = []
        for threads in (0, 2):
            batches = iter(dataset(cache, threads, order="stored"))
            outcomes = [outcome(batches) for _ in range(190)]
            before.append(outcomes.index("error"))
            assert set(outcomes[before[-1] :]) == {"error"}
            close(batches)
        assert before[0] == before[1] > 0

    def test_a_transform_that_raises_ends_the_threads(self, cache_of: CacheOf) -> None:
        def fail(value: Any) -> Any:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            list(dataset(cache_of("numbers"), 2, transform=fail))


@pytest.mark.parametrize("threads", [-1, 1.5, None, True])
def test_a_number_of_threads_that_is_none_is_refused(cache_of: CacheOf, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads must be 0 or more"):
        dataset(cache_of("numbers"), threads)
