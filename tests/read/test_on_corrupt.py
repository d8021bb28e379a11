"""``on_corrupt="skip"``: what cannot be read is left out, counted and reported, and nobody waits for it."""

import faulthandler
import itertools
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.utils.data import DataLoader

import shardcache
from shardcache import Cache, CachedDataset, DamagedBlockError, DamagedError, DamagedShardError, ShardCacheWarning
from shardcache.errors import UsageError
from shardcache.format import block, leases, pages, spec
from shardcache.format import manifest as manifests
from tests.read.sources import SOURCES, Images

CacheOf = Callable[..., Cache]
ORDERS: list[dict[str, Any]] = [
    {"shuffle": True, "shuffle_buffer": 40},  # lanes
    {"shuffle": True},  # full
    {"order": "stored"},
    {"order": "source"},
]


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    leases.close_all()


def ruin(path: Path, blocks: list[int], column: int | None = None) -> list[int]:
    """Flip a bit in the values of blocks of a cache; the source indices of their samples.

    Values as small as these lie in the pages of the tree, of which any change is one of the shard: so that only the
    blocks are damaged, the manifest is given the digest of the changed pages.
    """
    manifest = shardcache.open(path).manifest
    lost: list[int] = []
    seals = list(manifest.shards)
    for number in blocks:
        at, local = divmod(number, manifest.blocks_per_shard)
        with (path / spec.shard_name(at)).open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            for key, offset, _ in list(pages.values(file.fileno(), size, "shard")):
                if key[:4] == block.value_key(local, 0)[:4] and column in (None, int.from_bytes(key[4:6], "big")):
                    file.seek(offset + 3)
                    byte = file.read(1)[0]
                    file.seek(offset + 3)
                    file.write(bytes([byte ^ 4]))
            file.flush()
            structure = pages.structure(file.fileno(), size, "shard")
            seals[at] = msgspec.structs.replace(seals[at], structure=structure)
        rows = range(number * manifest.rows_per_block, number * manifest.rows_per_block + manifest.block_rows(number))
        permutation = manifest.permutation()
        lost += [row if permutation is None else permutation.forward(row) for row in rows]
    changed = msgspec.structs.replace(manifest, shards=tuple(seals))
    (path / spec.MANIFEST_NAME).write_bytes(manifests.encode(changed))
    return sorted(lost)


@pytest.fixture
def copy_of(cache_of: CacheOf, tmp_path: Path) -> Callable[..., Path]:
    return lambda *which: Path(shutil.copytree(cache_of(*which).path, tmp_path / "cache"))


def epoch(path: Any, workers: int = 0, **options: Any) -> tuple[list[Any], CachedDataset]:
    """The (batch, meta) pairs of an epoch, without the warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShardCacheWarning)
        dataset = CachedDataset(path, with_meta=True, on_corrupt="skip", **options)
        found = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    return found, dataset


def plain(value: Any) -> Any:
    return repr(value.tolist()) if isinstance(value, torch.Tensor) else repr(value)


@pytest.mark.parametrize("order", ORDERS, ids=["lanes", "full", "stored", "source"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_that_can_be_read_comes_once_and_the_others_never(copy_of, order: dict[str, Any], workers: int):
    path = copy_of("images")
    whole, _ = epoch(path, batch_size=16, **order)
    lost = ruin(path, [0, 7, 8])
    found, dataset = epoch(path, workers, batch_size=16, **order)
    assert [len(meta.index) for _, meta in found] == [len(meta.index) for _, meta in whole]
    valid = [index for _, meta in found for index in meta.index[meta.valid].tolist()]
    assert sorted(valid) == [index for index in range(600) if index not in lost]
    assert dataset.skipped == len(lost)
    for (images, labels), meta in found:  # those that stand in are true samples too
        for image, label, index in zip(images, labels, meta.index.tolist(), strict=True):
            assert torch.equal(image, SOURCES["images"][index][0])
            assert label == SOURCES["images"][index][1]
            assert index not in lost


def test_batches_are_the_same_for_every_number_of_workers(copy_of):
    path = copy_of("texts")
    ruin(path, [1, 4])
    options = {"batch_size": 8, "shuffle": True, "shuffle_buffer": 16, "collate": "list"}
    first = [plain(item) for item, _ in epoch(path, 0, **options)[0]]
    assert first == [plain(item) for item, _ in epoch(path, 2, **options)[0]]


@pytest.mark.parametrize("name", ["texts", "detections"])
def test_columns_of_every_kind_are_filled(copy_of, name: str):
    path = copy_of(name)
    lost = ruin(path, [2])
    found, _ = epoch(path, batch_size=None, order="stored")
    for sample, meta in found:
        assert repr(sample) == repr(SOURCES[name][meta.index])
    assert sum(not meta.valid for _, meta in found) == len(lost)


def test_a_batch_of_which_nothing_is_left_is_filled_with_the_first_sample_that_can_be_read(copy_of):
    path = copy_of("images")
    manifest = shardcache.open(path).manifest
    ruin(path, [0, 1, 2])
    found, _ = epoch(path, batch_size=manifest.rows_per_block, order="stored")
    first, second = found[0][1], found[3][1]
    assert not first.valid.any()
    assert set(first.index.tolist()) == {int(second.index[0])}
    assert second.valid.all()


def test_a_view_is_filled_from_itself(copy_of):
    path = copy_of("images")
    lost = ruin(path, [3])
    view = shardcache.open(path).select(lost + list(set(range(20)) - set(lost)))
    found, dataset = epoch(view, batch_size=4, shuffle=True)
    assert dataset.skipped == len(lost)
    for _, meta in found:
        assert set(meta.index.tolist()) <= set(range(20)) - set(lost)


def test_only_columns_that_are_read_can_lose_a_sample(copy_of):
    path = copy_of("images")
    ruin(path, [0, 5], column=1)
    _, images_and_labels = epoch(path, batch_size=16, order="stored")
    found, labels = epoch(path, batch_size=16, order="stored", columns=[1])
    assert images_and_labels.skipped > 0
    assert labels.skipped == 0
    assert all(meta.valid.all() for _, meta in found)


def test_transforms_see_whole_samples_and_cannot_write_into_each_other(copy_of):
    path = copy_of("texts")
    ruin(path, [0])

    def once(sample: dict[str, Any]) -> dict[str, Any]:
        sample["wave"] += 1000  # in place
        assert 1000 <= sample["wave"].max() < 2000
        return sample

    found, _ = epoch(path, batch_size=8, order="stored", transform=once, collate="list")
    assert found


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_come_to_the_same_number_of_batches(copy_of, world: int):
    path = copy_of("images")
    lost = ruin(path, list(range(9)))
    ranks = [epoch(path, batch_size=8, shuffle=True, rank=rank, world_size=world)[0] for rank in range(world)]
    assert len({len(found) for found in ranks}) == 1
    valid = [index for found in ranks for _, meta in found for index in meta.index[meta.valid].tolist()]
    assert sorted(valid) == [index for index in range(600) if index not in lost]


def test_a_loader_that_is_resumed_gives_the_batches_that_were_left(copy_of):
    path = copy_of("images")
    ruin(path, [0, 3, 11])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShardCacheWarning)

        def loader() -> Any:
            return CachedDataset(path, batch_size=8, shuffle=True, shuffle_buffer=40, on_corrupt="skip").loader()

        first, batches = loader(), []
        for number, (_, labels) in enumerate(first):
            batches.append(labels.tolist())
            if number == 30:
                state = first.state_dict()
        again = loader()
        again.load_state_dict(state)
        assert [labels.tolist() for _, labels in again] == batches[31:]


def test_each_block_is_warned_of_once_with_place_and_count(copy_of):
    path = copy_of("images")
    ruin(path, [7])
    loader = CachedDataset(path, batch_size=8, order="stored", on_corrupt="skip").loader()
    with pytest.warns(ShardCacheWarning, match=r"shard 0000\d, block \d+, column '0': .* 9 samples skipped") as seen:
        list(itertools.chain(loader, loader))
    assert len(seen) == 1
    assert loader.skipped == 18


@pytest.mark.parametrize("change", ["gone", "empty"])
def test_a_shard_that_is_gone_is_skipped_as_a_whole(tmp_path: Path, monkeypatch, change: str):
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 4 << 10)
    path = tmp_path / "cache"
    manifest = shardcache.build(Images(), path, block_bytes=600, progress=False).manifest
    file = path / spec.shard_name(1)
    file.unlink()
    if change == "empty":
        file.touch()
    found, dataset = epoch(path, 2, batch_size=16, shuffle=True)
    assert dataset.skipped == manifest.blocks_per_shard * manifest.rows_per_block
    assert dataset.skipped
    assert sum(int(meta.valid.sum()) for _, meta in found) == 600 - dataset.skipped


def test_a_cache_of_which_nothing_can_be_read_is_an_error(copy_of):
    path = copy_of("images")
    for file in path.glob("shard-*"):
        file.unlink()
    with pytest.raises(DamagedError, match="no block of the cache can be read"):
        epoch(path, batch_size=16, shuffle=True)


def test_blocks_of_one_row_are_skipped_too(cache_of: CacheOf, tmp_path: Path):
    path = Path(shutil.copytree(cache_of("images", "shuffled", 60).path, tmp_path / "cache"))
    assert shardcache.open(path).manifest.rows_per_block == 1
    lost = ruin(path, [5, 6, 100])
    found, dataset = epoch(path, batch_size=16, shuffle=True)
    assert dataset.skipped == 3
    assert sorted(i for _, meta in found for i in meta.index[meta.valid].tolist()) == sorted({*range(600)} - {*lost})


def test_threads_that_decode_ahead_skip_as_well(copy_of):
    path = copy_of("images")
    lost = ruin(path, [0, 9])
    found, dataset = epoch(path, batch_size=8, shuffle=True, shuffle_buffer=40, threads=2)
    assert sum(int(meta.valid.sum()) for _, meta in found) == 600 - len(lost)
    assert dataset.skipped == len(lost)


def test_by_default_damage_is_an_error_that_names_the_place(copy_of):
    path = copy_of("images")
    ruin(path, [7])
    with pytest.raises(DamagedBlockError, match=r"shard 0000\d, block \d+, column '0'"):
        list(CachedDataset(path, batch_size=8, order="stored").loader(2))
    with pytest.raises(UsageError, match="on_corrupt must be 'raise' or 'skip', was 'ignore'"):
        CachedDataset(path, order="stored", on_corrupt="ignore")


class Shorten:
    """A transform after whose first call the cache's files are empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, batch: Any) -> Any:
        for file in self.path.glob("shard-*.lmdb"):
            os.truncate(file, 0)
        return batch


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_worker_that_dies_of_a_truncated_file_is_an_error_that_names_the_shard(copy_of, io: str, capfd):
    path = copy_of("images")
    dataset = CachedDataset(path, batch_size=8, shuffle=True, io=io, batch_transform=Shorten(path))
    with pytest.raises(DamagedShardError, match=r"shard 0000\d: (worker process \d+ died of a bus error|must have)"):
        list(dataset.loader(1))


def die(batch: Any) -> Any:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGBUS)
    return batch


def test_a_bus_error_in_a_worker_names_the_shard_that_it_turned_to(copy_of):
    loader = CachedDataset(copy_of("images"), batch_size=8, shuffle=True, batch_transform=die).loader(1)
    with pytest.raises(DamagedShardError, match=r"shard 00000: worker process \d+ died of a bus error after it turned"):
        list(loader)
