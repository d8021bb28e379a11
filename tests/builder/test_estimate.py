"""What is said before the long work begins: size, time, room on the disk."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardcache
from shardcache import StorageError
from tests.builder.conftest import digests, files
from tests.builder.sources import Made, mixed
from tests.format.test_shard import small_disk


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"progress": False, **options})


def noise(index: int) -> bytes:
    return np.random.default_rng(index).bytes(20_000)


def photo(index: int) -> dict[str, Any]:
    draw = np.random.default_rng(index)
    smooth = np.cumsum(draw.integers(-2, 3, (32, 32, 3)), axis=0).astype(np.uint8)
    return {"image": smooth, "text": "lorem ipsum dolor " * draw.integers(1, 40), "label": index % 10}


@pytest.mark.parametrize("options", [{}, {"codec": "none"}, {"layout": "source", "codec": {"image": "zstd:19"}}])
def test_the_size_on_disk_the_shards_and_the_columns_are_foretold(options, tmp_path, many_shards):
    dataset = Made(3000, photo)
    expected = shardcache.estimate(dataset, tmp_path / "c", **options)
    assert not list(tmp_path.iterdir())
    info = build(dataset, tmp_path / "c", **options).info()
    assert expected.file_bytes == pytest.approx(info["file_bytes"], rel=0.15)
    assert expected.raw_bytes == pytest.approx(info["raw_bytes"], rel=0.1)
    for name in ("samples", "shards", "rows_per_block", "layout"):
        assert getattr(expected, name) == info[name], name
    assert [one.codec for one in expected.columns if one.raw_bytes] == [one["codec"] for one in info["columns"]]
    for one, column in zip([one for one in expected.columns if one.raw_bytes], info["columns"], strict=True):
        assert one.stored_bytes == pytest.approx(column["stored_bytes"], rel=0.25), one.name
        assert one.why == column["why"]
    assert expected.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_a_few_large_rows_and_columns_without_values_are_counted(tmp_path):
    large = [noise(0) * 500, noise(1)]
    dataset = Made(60, lambda i: {"data": large[i % 30 > 0], "none": None, "rare": [1] * (i % 2)})
    expected = shardcache.estimate(dataset, codec="none")
    info = build(dataset, tmp_path / "c", codec="none").info()
    assert info["file_bytes"] * 0.5 < expected.file_bytes < info["file_bytes"] * 6  # how many of the two were seen?


def test_only_some_samples_are_read_and_the_rest_of_the_time_is_reckoned(tmp_path):
    dataset = Made(100_000, mixed)
    expected = shardcache.estimate(dataset, num_workers=2)
    assert len(dataset.reads) < 400
    assert sum(dataset.reads.values()) < 400
    assert expected.seconds > 0
    assert str(expected).startswith("100,000 samples in ")
    assert expected.as_dict()["columns"][1]["name"] == "image"


def test_an_estimate_does_not_change_the_bytes(tmp_path):
    assert shardcache.estimate(Made(300, mixed)).samples == 300
    build(Made(300, mixed), tmp_path / "a")
    build(Made(300, mixed), tmp_path / "b", force=True, allow_random=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_disk_with_too_little_room_is_refused_before_the_work_begins(num_workers, tmp_path):
    dataset = Made(400, noise)
    with small_disk(tmp_path / "disk", 6 << 20) as disk:
        with pytest.raises(StorageError, match=r"about 9\.. MB are needed \(with a margin of 10%\), 6\.. MB are free"):
            build(dataset, disk / "c", codec="none", num_workers=num_workers)
        assert files(disk) == []
        assert len(dataset.reads) < 200
        with pytest.raises(StorageError, match=r"disk full \(\d+ bytes were free\)"):
            build(dataset, disk / "c", codec="none", num_workers=num_workers, force=True)


def test_what_an_interrupted_build_has_done_is_not_asked_for_again(tmp_path, many_shards):
    dataset = Made(400, noise)
    with small_disk(tmp_path / "disk", 6 << 20) as disk:
        with pytest.raises(StorageError, match="disk full"):
            build(dataset, disk / "c", codec="none", force=True)
        done = len(list((disk / "c.partial").glob("shard-*.json")))
        assert done >= 3
        with pytest.raises(StorageError, match="are needed"):
            build(dataset, disk / "c", codec="none")
        assert len(list((disk / "c.partial").glob("shard-*.json"))) == done
        subprocess.run(["mount", "-o", "remount,size=10M", disk], check=True)  # 8.8 MB with the margin, in pages
        cache = build(dataset, disk / "c", codec="none")
        assert len(cache) == 400
        del cache


def test_a_dataset_that_has_one_sample_can_be_estimated(tmp_path):
    expected = shardcache.estimate([np.zeros(10)], tmp_path / "not" / "there" / "yet")
    assert (expected.samples, expected.shards, expected.scattered_ms) == (1, 1, None)
    assert expected.free_bytes
