"""Parts of a cache: ``select``, ``split`` and ``filter`` write nothing, read what they hold and no more, and train."""

import itertools
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import shardcache
from shardcache import Cache, CachedDataset, DamagedBlockError, UsageError
from tests.read.sources import Numbers, Source

SIZE = 1000
CLASSES = {"a": 500, "b": 300, "c": 150, "d": 50}


class Labelled(Source):
    """Sorted by class, the classes of different sizes."""

    size = SIZE

    def __init__(self) -> None:
        self.labels = [label for label, count in CLASSES.items() for _ in range(count)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "label": self.labels[index],
            "even": index % 2 == 0,
            "text": "x" * (index % 5) + str(index),
            "values": torch.arange(6) * index,
        }


@pytest.fixture(scope="module", params=["shuffled", "source"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("labelled") / request.param
    return shardcache.build(Labelled(), path, layout=request.param, block_bytes=1000, progress=False)


def indices(view: Cache) -> list[int]:
    return [sample["index"] for sample in view]


class TestSelect:
    def test_gives_the_samples_in_the_order_that_was_asked_for(self, cache: Cache) -> None:
        wanted = [7, 999, 0, 500, -2]
        view = cache.select(wanted)
        assert len(view) == 5
        assert indices(view) == [7, 999, 0, 500, 998]
        assert view[1]["text"] == cache[999]["text"]
        assert view[-1]["index"] == 998
        assert [sample["index"] for sample in view[[3, 0]]] == [500, 7]
        assert [sample["index"] for sample in view[1:4]] == [999, 0, 500]
        assert torch.equal(view[3]["values"], cache[500]["values"])

    @pytest.mark.parametrize(
        "make", [list, tuple, np.array, torch.tensor, iter, lambda some: np.array(some, np.uint16)]
    )
    def test_takes_any_list_of_ints(self, cache: Cache, make: Any) -> None:
        assert indices(cache.select(make([5, 3, 900]))) == [5, 3, 900]
        assert indices(cache.select(range(10, 20, 3))) == [10, 13, 16, 19]

    def test_an_index_outside_of_a_view_is_an_index_error(self, cache: Cache) -> None:
        view = cache.select([1, 2, 3])
        for index in (3, -4):
            with pytest.raises(IndexError, match="3 samples"):
                view[index]

    @pytest.mark.parametrize(
        ("wrong", "error", "said"),
        [
            ([], UsageError, "at least one sample"),
            ([1, 2, 1], UsageError, "index 1 comes twice"),
            ([1, -999], UsageError, "index 1 comes twice"),
            ([1000], IndexError, "index 1000 is out of range: the cache has 1000 samples"),
            ([-1001], IndexError, "index -1001 is out of range"),
            ([1.5], UsageError, "a list of ints"),
            (["1"], UsageError, "a list of ints"),
            ([[1, 2]], UsageError, "of 2 dimensions"),
            (np.ones(SIZE, bool), UsageError, "np.flatnonzero"),
            (5, UsageError, "indices must be a list of ints, was 5"),
            (None, UsageError, "indices must be a list of ints, was None"),
        ],
    )
    def test_what_cannot_be_selected_is_an_error(self, cache: Cache, wrong: Any, error: Any, said: str) -> None:
        with pytest.raises(error, match=said):
            cache.select(wrong)


class TestSplit:
    def test_parts_are_disjoint_and_together_everything(self, cache: Cache) -> None:
        parts = cache.split({"train": 0.8, "val": 0.15, "test": 0.05})
        assert {name: len(part) for name, part in parts.items()} == {"train": 800, "val": 150, "test": 50}
        assert sorted(itertools.chain(*map(indices, parts.values()))) == list(range(SIZE))
        assert all(indices(part) == sorted(indices(part)) for part in parts.values())

    def test_fractions_may_leave_samples_out(self, cache: Cache) -> None:
        parts = cache.split({"a": 0.3, "b": 0.1})
        assert [len(part) for part in parts.values()] == [300, 100]
        assert not set(indices(parts["a"])) & set(indices(parts["b"]))

    def test_it_is_the_same_every_time_and_in_every_layout(self, cache: Cache) -> None:
        val = indices(cache.split({"train": 0.99, "val": 0.01})["val"])
        assert val == FROZEN
        assert indices(cache.split({"train": 0.99, "val": 0.01}, seed=0)["val"]) == val
        assert indices(cache.split({"train": 0.99, "val": 0.01}, seed=1)["val"]) != val

    def test_it_is_random(self, cache: Cache) -> None:
        labels = Counter(sample["label"] for sample in cache.split({"val": 0.2}, seed=3)["val"])
        assert all(abs(labels[label] - count / 5) < 25 for label, count in CLASSES.items())

    def test_stratified_every_label_is_divided_in_the_same_proportions(self, cache: Cache) -> None:
        parts = cache.split({"train": 0.9, "val": 0.1}, seed=5, stratify="label")
        assert Counter(sample["label"] for sample in parts["val"]) == {"a": 50, "b": 30, "c": 15, "d": 5}
        assert Counter(sample["label"] for sample in parts["train"]) == {"a": 450, "b": 270, "c": 135, "d": 45}
        assert sorted(indices(parts["train"]) + indices(parts["val"])) == list(range(SIZE))

    def test_stratified_it_reads_the_column_of_labels_and_no_other(self, tmp_path: Path) -> None:
        cache = damaged(tmp_path, lambda block: True)
        with pytest.raises(DamagedBlockError):
            cache.split({"val": 0.5}, stratify="1")
        assert len(cache.split({"val": 1.0}, stratify="0")["val"]) > 0

    @pytest.mark.parametrize(
        ("fractions", "said"),
        [
            ({}, "must be above 0"),
            ({"a": 0.5, "b": 0.6}, "add up to at most 1"),
            ({"a": 0.0, "b": 1.0}, "must be above 0"),
            ({"a": -0.1}, "must be above 0"),
            ({"a": 0.0001}, "'a' would be empty"),
            ({"a": float("nan")}, "must be above 0"),
            ([0.5, 0.5], "must be a dict of numbers"),
            ({"a": "0.5"}, "must be a dict of numbers"),
        ],
    )
    def test_fractions_that_make_no_sense_are_errors(self, cache: Cache, fractions: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            cache.split(fractions)

    def test_a_seed_that_is_no_int_is_an_error(self, cache: Cache) -> None:
        with pytest.raises(UsageError, match="seed must be an int, was '0'"):
            cache.split({"a": 0.5}, seed="0")  # type: ignore[arg-type]

    def test_three_thirds_are_the_whole(self, cache: Cache) -> None:
        parts = cache.split(dict.fromkeys("abc", 1 / 3))
        assert sum(map(len, parts.values())) == SIZE

    def test_a_column_that_holds_no_labels_is_an_error(self, cache: Cache) -> None:
        with pytest.raises(UsageError, match=r"stratify: column 'values' holds Tensor, not labels"):
            cache.split({"a": 0.5}, stratify="values")
        with pytest.raises(shardcache.StructureError, match="no column"):
            cache.split({"a": 0.5}, stratify="lable")


FROZEN = [100, 212, 232, 279, 286, 312, 419, 523, 672, 692]


class TestFilter:
    def test_holds_the_samples_that_satisfy_the_condition(self, cache: Cache) -> None:
        view = cache.filter(columns=["label", "even"], where=lambda label, even: label == "c" and even)
        assert indices(view) == [index for index in range(800, 950) if index % 2 == 0]
        assert indices(cache.filter("index", lambda index: index > 996)) == [997, 998, 999]

    def test_reads_only_the_columns_that_are_named(self, tmp_path: Path) -> None:
        cache = damaged(tmp_path, lambda block: True)
        assert len(cache.filter(columns=[0], where=lambda index: index < 50)) == 50

    def test_nothing_that_fits_is_an_error(self, cache: Cache) -> None:
        with pytest.raises(UsageError, match="no sample satisfies"):
            cache.filter("label", lambda label: label == "z")

    @pytest.mark.parametrize(("columns", "where", "said"), [([], bool, "name one column"), (["label"], 5, "callable")])
    def test_what_cannot_be_asked_is_an_error(self, cache: Cache, columns: Any, where: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            cache.filter(columns, where)

    def test_what_the_condition_raises_names_the_sample(self, cache: Cache) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            cache.filter("index", lambda index: 1 / (index - 7))
        assert caught.value.__notes__ == ["(raised by where of sample 7)"]


class TestNested:
    def test_a_view_of_a_view_counts_within_it(self, cache: Cache) -> None:
        evens = cache.filter("even", lambda even: even)
        third = evens.select(range(0, 500, 3))
        assert indices(third) == list(range(0, SIZE, 6))
        parts = third.split({"x": 0.5, "y": 0.5})
        assert sorted(indices(parts["x"]) + indices(parts["y"])) == indices(third)
        assert all(index % 6 == 0 for index in indices(parts["x"].filter("label", lambda label: label == "a")))

    def test_views_that_hold_the_same_have_the_same_digest_and_others_do_not(self, cache: Cache) -> None:
        view = cache.select([2, 4, 6])
        assert view.digest == cache.select(range(8)).select([2, 4, 6]).digest
        assert len({view.digest, cache.digest, cache.select([2, 4]).digest, cache.select([6, 4, 2]).digest}) == 4

    def test_it_says_what_it_is(self, cache: Cache) -> None:
        view = cache.select([2, 4, 6])
        assert "3 of 1,000 samples" in repr(view)
        assert view.info()["samples"] == 3


class TestPickled:
    def test_it_is_small_and_the_same(self, cache: Cache) -> None:
        for view in (cache.select(range(0, 1000, 2)), cache.split({"a": 0.5})["a"]):
            list(view)  # has read something
            data = pickle.dumps(view)
            assert len(data) < 8 * 500 + 1000
            again = pickle.loads(data)
            assert indices(again) == indices(view)
            assert again.digest == view.digest


def damaged(tmp_path: Path, where: Any) -> Cache:
    """Numbers in source layout; the vectors of the blocks for which ``where`` is true are changed on disk."""
    path = tmp_path / "damaged"
    plain = shardcache.build(Numbers(3000), path, layout="source", codec="none", block_bytes=4000, progress=False)
    stored = [bytes(plain.blocks.read(number, [2])[2]._data) for number in range(plain.manifest.blocks)]
    found = 0
    for shard in sorted(path.glob("*")):
        data = bytearray(shard.read_bytes())
        for number, value in enumerate(stored):
            place = data.find(value)
            if place >= 0:
                found += 1
                data[place + len(value) // 2] ^= 0x40 * bool(where(number))
        shard.write_bytes(data)
    assert found == len(stored)
    return shardcache.open(path)


class TestUntouched:
    def test_blocks_that_hold_no_sample_of_a_view_are_never_read(self, tmp_path: Path) -> None:
        whole = shardcache.build(Numbers(3000), tmp_path / "whole", layout="source", block_bytes=4000, progress=False)
        wanted = [*range(110, 190), 1700, *range(2900, 2910)]
        touched = {index // whole.manifest.rows_per_block for index in wanted}
        assert len(touched) < whole.manifest.blocks // 2
        cache = damaged(tmp_path, lambda block: block not in touched)
        view = cache.select(wanted)
        assert [index for index, _ in view] == wanted
        for options in (
            {"shuffle": True},
            {"order": "stored"},
            {"order": "source"},
            {"shuffle": True, "shuffle_buffer": 8},
        ):
            ds = CachedDataset(view, batch_size=10, **options)
            for workers in (0, 2):
                seen = [i for index, _ in DataLoader(ds, batch_size=None, num_workers=workers) for i in index.tolist()]
                assert sorted(seen) == wanted
                ds.set_epoch(1)
        with pytest.raises(DamagedBlockError):
            list(CachedDataset(cache, batch_size=10, order="stored"))

    def test_shards_that_hold_no_sample_of_a_view_need_not_be_there(self, tmp_path: Path) -> None:
        cache = shardcache.build(Large(), tmp_path / "large", layout="source", progress=False)
        first, *others = sorted(cache.path.glob("shard-*"))
        assert others
        for shard in others:
            shard.unlink()
        view = shardcache.open(cache.path).select(range(50))
        assert [index for index, _ in CachedDataset(view, order="stored")] == list(range(50))
        assert first.exists()


class Large(Source):
    size = 400

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, np.full(1 << 16, index % 256, np.uint8)


ORDERS = ({"shuffle": True}, {"shuffle": True, "shuffle_buffer": 30}, {"order": "stored"}, {"order": "source"})


@pytest.fixture(scope="module")
def view(cache: Cache) -> Cache:
    return cache.split({"train": 0.37}, seed=2, stratify="label")["train"]


class TestTraining:
    @pytest.mark.filterwarnings("ignore:source order on a cache of shuffled layout")
    @pytest.mark.parametrize("workers", [0, 1, 2, 3])
    def test_every_sample_comes_once_in_every_order(self, view: Cache, workers: int) -> None:
        for options in ORDERS:
            ds = CachedDataset(view, batch_size=16, with_meta=True, collate="list", **options)
            epochs = []
            for epoch in (0, 1):
                ds.set_epoch(epoch)
                batches = list(DataLoader(ds, batch_size=None, num_workers=workers))
                assert len(batches) == len(ds) == -(-len(view) // 16)
                for batch, meta in batches:
                    assert batch["index"].tolist() == meta.index.tolist()  # of the whole cache
                    assert torch.equal(batch["values"], torch.arange(6) * meta.index[:, None])
                    assert batch["text"] == ["x" * (i % 5) + str(i) for i in meta.index.tolist()]
                epochs.append([i for _, meta in batches for i in meta.index.tolist()])
                assert sorted(epochs[-1]) == indices(view)
            assert (epochs[0] != epochs[1]) == ("shuffle" in options)
            if options.get("order") == "source":
                assert epochs[0] == indices(view)

    @pytest.mark.filterwarnings("ignore:source order on a cache of shuffled layout")
    def test_source_order_is_the_order_of_the_selection(self, cache: Cache) -> None:
        wanted = [900, 3, 500, 4, 2]
        ds = CachedDataset(cache.select(wanted), batch_size=2, columns="index", collate="list")
        assert [i for batch in ds for i in batch["index"].tolist()] == wanted

    @pytest.mark.parametrize("remainder", ["pad", "drop"])
    def test_ranks_share_it(self, view: Cache, remainder: str) -> None:
        def rows(rank: int) -> list[tuple[int, bool]]:
            options = {"shuffle": True, "shuffle_buffer": 30, "remainder": remainder, "with_meta": True}
            ds = CachedDataset(view, batch_size=16, columns="index", rank=rank, world_size=3, **options)
            return [row for _, meta in ds for row in zip(meta.index.tolist(), meta.valid.tolist(), strict=True)]

        ranks = [rows(rank) for rank in range(3)]
        assert len({len(rank) for rank in ranks}) == 1
        seen = sorted(index for rank in ranks for index, valid in rank if valid)
        if remainder == "pad":
            assert seen == indices(view)
        else:
            assert len(set(seen)) == len(seen) == len(view) // 48 * 48

    @pytest.mark.parametrize("workers", [0, 2])
    def test_it_resumes(self, view: Cache, workers: int) -> None:
        def loader() -> Any:
            options = {"shuffle": True, "shuffle_buffer": 30, "columns": "index"}
            return CachedDataset(view, batch_size=16, **options).loader(num_workers=workers)

        first = loader()
        whole: list[Tensor] = [batch["index"] for batch in first]
        again = loader()
        for _ in itertools.islice(again, 9):
            pass
        third = loader()
        third.load_state_dict(again.state_dict())
        assert [batch["index"].tolist() for batch in third] == [index.tolist() for index in whole[9:]]

    def test_two_parts_train_and_validate_side_by_side(self, cache: Cache) -> None:
        parts = cache.split({"train": 0.9, "val": 0.1})
        train = CachedDataset(parts["train"], batch_size=64, shuffle=True, columns="index").loader(num_workers=1)
        val = CachedDataset(parts["val"], batch_size=64, order="stored", columns="index").loader(num_workers=1)
        for epoch in range(2):
            train.set_epoch(epoch)
            seen = [i for batch in train for i in batch["index"].tolist()]
            unseen = [i for batch in val for i in batch["index"].tolist()]
            assert sorted(seen + unseen) == list(range(SIZE))

    def test_of_one_sample(self, cache: Cache) -> None:
        ds = CachedDataset(cache.select([17]), batch_size=4, shuffle=True, columns="index")
        assert [batch["index"].tolist() for batch in ds] == [[17]]


def test_nothing_is_written_into_the_cache(tmp_path: Path) -> None:
    cache = shardcache.build(Numbers(500), tmp_path / "cache", progress=False)
    before = {path: path.stat().st_mtime_ns for path in cache.path.iterdir()}
    for part in cache.split({"a": 0.5, "b": 0.5}).values():
        list(CachedDataset(part, batch_size=10, shuffle=True))
    assert {path: path.stat().st_mtime_ns for path in cache.path.iterdir()} == before
    shutil.rmtree(cache.path)
