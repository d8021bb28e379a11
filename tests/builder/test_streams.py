"""What can only be iterated is built in one pass: in its order or shuffled in windows, in bounded memory, resumable."""

import gzip
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardcache
from shardcache import BuildMismatchError, CachedDataset, SampleError, SourceError, StaleCacheError, UsageError
from shardcache.builder.source import Recipe
from shardcache.format import spec
from shardcache.registry import spotcheck
from tests.builder.conftest import digests
from tests.builder.sources import Endless, Skipping, numbers

SIZE = 2000
SMALL: dict[str, Any] = {"block_bytes": 1500, "progress": False}


@pytest.fixture(autouse=True)
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 1000)


def build(dataset: Any, path: Path, **options: Any) -> shardcache.Cache:
    return shardcache.build(dataset, path, **SMALL | options)


SOURCES = {"an IterableDataset": lambda: Endless(SIZE), "a generator": numbers, "a generator function": lambda: numbers}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("options", [{}, {"layout": "window", "shuffle_window": 100}, {"shuffle_window": 77}])
def test_a_stream_is_stored_whole_and_read_by_index(make, options, tmp_path):
    cache = build(make(), tmp_path / "c", **options)
    assert len(cache.manifest.shards) > 3
    assert cache.manifest.layout == ("window" if options else "source")
    assert [sample["number"] for sample in cache[:]] == list(range(SIZE))
    assert cache[-1]["x"].tolist() == np.full((3, 4), SIZE - 1).tolist()
    assert shardcache.verify(cache.path)
    batches = CachedDataset(cache, batch_size=64, shuffle=True)
    assert sorted(n for batch in batches for n in batch["number"].tolist()) == list(range(SIZE))
    if options:
        stored = [n for b in CachedDataset(cache, batch_size=64, order="stored") for n in b["number"].tolist()]
        window = options["shuffle_window"]
        assert stored != list(range(SIZE))
        assert all(number // window == row // window for row, number in enumerate(stored))


@pytest.mark.parametrize("size", [1, 2, 17, 128, 129, 500])
@pytest.mark.parametrize("window", [None, 1, 50])
def test_streams_of_any_length_end_where_they_end(size, window, tmp_path):
    cache = build(Endless(size), tmp_path / "c", shuffle_window=window)
    assert [sample["number"] for sample in cache[:]] == list(range(size))
    assert shardcache.verify(cache.path)


def test_a_stream_that_ends_with_a_shard_has_no_empty_one(tmp_path):
    whole = build(Endless(SIZE), tmp_path / "c").manifest
    size = whole.blocks_per_shard * whole.rows_per_block
    cache = build(Endless(4 * size), tmp_path / "d")
    assert (len(cache), len(cache.manifest.shards)) == (4 * size, 4)


@pytest.mark.parametrize("kind", [Endless, Skipping])
@pytest.mark.parametrize("options", [{}, {"shuffle_window": 100}, {"on_error": "skip"}])
def test_an_interrupted_pass_goes_on_at_a_shard(kind, options, tmp_path):
    bad = [3, 300, 1000, 1500] if options.get("on_error") else []
    build(kind(SIZE, bad=bad), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        build(Endless(SIZE, bad=bad, stops_at=1100), tmp_path / "c", **options)
    again = kind(SIZE, bad=bad)
    cache = build(again, tmp_path / "c", **options)
    assert digests(tmp_path / "c") == digests(tmp_path / "whole")
    assert [sample["number"] for sample in cache[:]] == [number for number in range(SIZE) if number not in bad]
    if kind is Skipping:
        assert again.made <= 128  # the probe, from which the plan is made again
        assert again.rest.made < SIZE - 800
    else:
        assert again.made == SIZE


def test_another_stream_is_no_continuation(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(Endless(SIZE, stops_at=1100), tmp_path / "c")
    with pytest.raises(BuildMismatchError, match="an interrupted build of something else"):
        build(Endless(SIZE, start=1), tmp_path / "c")


def test_samples_that_cannot_be_stored_are_skipped_and_what_breaks_the_stream_is_not(tmp_path):
    cache = build(Endless(SIZE, bad=[5, 700]), tmp_path / "c", on_error="skip")
    assert [one.index for one in cache.skipped_samples()] == [5, 700]
    assert [sample["number"] for sample in cache[698:702]] == [699, 701, 702, 703]
    for on_error in ("raise", "skip"):
        with pytest.raises(SampleError, match="sample 900: iterating the dataset raised OSError: the line is dead"):
            build(Endless(SIZE, fails_at=900), tmp_path / on_error, on_error=on_error)
        assert not (tmp_path / on_error).exists()


def test_damaged_shards_are_built_again_in_another_pass(tmp_path):
    cache = build(Endless(SIZE, bad=[5, 700]), tmp_path / "c", on_error="skip", shuffle_window=90)
    before = digests(cache.path)
    last = len(cache.manifest.shards) - 1
    for number in (1, 2, last):
        (cache.path / spec.shard_name(number)).write_bytes(b"")
    done = shardcache.repair(cache.path, lambda: Endless(SIZE), progress=False)
    assert done.restored == (1, 2, last)
    assert digests(cache.path) == before


def test_a_spot_check_compares_what_comes_first(tmp_path):
    cache = build(Endless(SIZE, bad=[2]), tmp_path / "c", on_error="skip")
    spotcheck.check(cache, Recipe(Endless(SIZE, bad=[2]), None), 8)
    with pytest.raises(StaleCacheError, match="sample 0, column"):
        spotcheck.check(cache, Recipe(Endless(SIZE, start=1), None), 8)


def test_memory_is_bounded_by_the_window(tmp_path, monkeypatch):
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 8 << 20)

    def large() -> Iterator[Any]:
        for index in range(800):
            yield np.full(1 << 18, index % 256, np.uint8)  # 200 MiB in all

    tracemalloc.start()
    cache = shardcache.build(large, tmp_path / "c", shuffle_window=16, codec="none", progress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 800
    assert peak < 72 << 20  # twice the probe of 32 MiB, which is held encoded too; a window of 4 MiB


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "shuffled"}, r"layout='source'\) or shuffled within windows"),
        ({"num_workers": 2}, "is read by one process, in one pass"),
    ],
)
def test_what_cannot_work_is_refused(options, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        build(Endless(10), tmp_path / "c", **options)


def test_what_is_no_source_is_said_to_be_none(tmp_path):
    with pytest.raises(UsageError, match="a DataLoader yields batches"):
        build(torch.utils.data.DataLoader([1, 2]), tmp_path / "c")
    with pytest.raises(SourceError, match="is empty: it yields no sample"):
        build(iter([]), tmp_path / "c")
    with pytest.raises(UsageError, match="or __iter__"):
        build(5, tmp_path / "c")


def test_a_length_does_not_make_an_iterable_dataset_one_with_random_access(tmp_path):
    class Sized(Endless):
        def __len__(self) -> int:
            return self.size

    assert len(build(Sized(300), tmp_path / "c")) == 300


class TestCompressedTars:
    @pytest.fixture
    def tars(self, tmp_path: Path) -> list[str]:
        import webdataset

        samples = [{"__key__": f"{k:04}", "txt": f"text {k}", "bin": bytes([k % 256]) * (k % 7)} for k in range(300)]
        for name, part in (("a.tar.gz", samples[:200]), ("b.tar.gz", samples[200:])):
            with webdataset.TarWriter(str(tmp_path / name)) as writer:
                for sample in part:
                    writer.write(sample)
        return [str(tmp_path / "a.tar.gz"), str(tmp_path / "b.tar.gz")]

    def test_they_are_read_as_webdataset_reads_them(self, tars, tmp_path):
        import webdataset

        theirs = []
        for path in tars:
            with gzip.open(path) as stream:
                files = webdataset.tariterators.tar_file_expander([{"url": path, "stream": stream}])
                theirs += list(webdataset.tariterators.group_by_keys(files))
        theirs = [
            {name: part for name, part in sample.items() if not name.endswith(("url__", "path__"))} for sample in theirs
        ]
        cache = shardcache.build(shardcache.WebDatasetStream(*tars), tmp_path / "c", progress=False)
        assert cache[:] == theirs

    @pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
    def test_what_was_cut_off_is_an_error_and_no_shorter_cache(self, kind, tmp_path):
        """Wherever that is: tarfile by itself takes what is cut within a header for the end."""
        for number in range(8):
            (tmp_path / f"{number}.txt").write_bytes(np.random.default_rng(number).bytes(7))
        with tarfile.open(tmp_path / f"whole.{kind}", f"w:{kind}") as tar:
            for number in range(8):
                tar.add(tmp_path / f"{number}.txt", f"{number}.txt")
        data = (tmp_path / f"whole.{kind}").read_bytes()
        for part in range(4, 32):
            path = tmp_path / f"{part}.tar.{kind}"
            path.write_bytes(data[: len(data) * part // 32])
            with pytest.raises((SampleError, SourceError), match=rf"{path.name}: cannot be read as a tar: .*cut off"):
                list(shardcache.WebDatasetStream(path))

    def test_the_class_with_random_access_says_which_one_has_none(self, tars):
        with pytest.raises(SourceError, match=r"is compressed \(gzip\).*WebDatasetStream"):
            shardcache.WebDataset(*tars)

    def test_a_plain_tar_that_begins_like_a_compressed_one_is_plain(self, tmp_path):
        (tmp_path / "BZ.txt").write_text("text")
        with tarfile.open(tmp_path / "plain.tar", "w") as tar:
            tar.add(tmp_path / "BZ.txt", "BZ.txt")
        assert shardcache.WebDataset(tmp_path / "plain.tar")[0] == {"__key__": "BZ", "txt": b"text"}
