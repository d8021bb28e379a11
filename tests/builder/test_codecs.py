"""Which codec a column gets."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import shardcache
from shardcache.builder.codecs import DECODE_SPEED
from shardcache.builder.probe import Options, draw_up
from shardcache.builder.source import Source
from shardcache.format import compression
from tests.builder.sources import Made, factory
from tests.exact import exact


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, **{"progress": False, **options})


def encoded(kind: str, index: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def test_auto_stores_what_is_compressed_already_as_it_is_and_compresses_the_rest(tmp_path):
    dataset = Made(
        100,
        lambda i: {
            "jpeg": encoded("jpeg", i),
            "png": np.frombuffer(encoded("png", i), np.uint8),
            "gzip": zlib.compress(np.random.default_rng(i).bytes(2000)),
            "noise": np.random.default_rng(i).random(500),
            "text": f"the quick brown fox jumps over the lazy dog {i}; " * 30,
            "label": i % 10,
            "tokens": np.arange(i, i + 300),
            "nothing": None,
        },
    )
    cache = build(dataset, tmp_path / "c")
    codecs = {field.name: field.codec for field in cache.schema}
    assert {name: codecs[name] for name in ("jpeg", "png", "gzip", "noise")} == dict.fromkeys(
        ("jpeg", "png", "gzip", "noise"), "none"
    )
    assert codecs["tokens"].startswith("zstd:")
    text = cache.schema["text"]
    assert text.codec.startswith("zstd:")
    assert text.stored_bytes < text.raw_bytes / 4
    assert "ratio" in text.why
    assert cache.schema["jpeg"].why == "does not compress"
    assert [exact(sample) for sample in cache] == [exact(dataset[i]) for i in range(100)]


def test_files_of_photographs_are_stored_as_they_are_and_coarse_pixels_are_compressed(tmp_path):
    photo = Image.fromarray(load_sample_image("china.jpg"))

    def sample(index: int) -> dict[str, Any]:
        part = photo.crop((index * 7, index * 5, index * 7 + 96, index * 5 + 96))
        files = {}
        for kind in ("jpeg", "png", "webp"):
            file = io.BytesIO()
            part.save(file, kind)
            files[kind] = file.getvalue()
        return {**files, "coarse": np.asarray(part) // 16}

    cache = build(Made(60, sample), tmp_path / "c")
    codecs = {field.name: field.codec for field in cache.schema}
    assert codecs.pop("coarse").startswith("zstd:")
    assert codecs == dict.fromkeys(("jpeg", "png", "webp"), "none")
    assert {cache.schema[name].why for name in codecs} == {"does not compress"}


@pytest.mark.parametrize(
    ("codec", "stored"),
    [("none", "none"), ("zstd", "zstd:3"), ("zstd:1", "zstd:1"), ("zstd:-50", "zstd:-50"), ("zstd:22", "zstd:22")],
)
def test_a_codec_that_was_asked_for_is_used_for_every_column(codec, stored, tmp_path):
    dataset = factory(80)
    cache = build(dataset, tmp_path / "c", codec=codec)
    assert {field.codec for field in cache.schema} == {stored}
    assert [exact(sample) for sample in cache] == [exact(dataset[i]) for i in range(80)]
    if codec == "none":
        assert all(field.stored_bytes >= field.raw_bytes for field in cache.schema)


def test_codecs_by_column_leave_the_others_to_auto(tmp_path):
    cache = build(factory(80), tmp_path / "c", codec={"image": "none", "extra": "zstd:-3", "text": "auto"})
    assert cache.schema["image"].codec == "none"
    assert cache.schema["extra"].codec == "zstd:-3"
    assert cache.schema["text"].codec.startswith("zstd:")
    cache = build([(1, "a" * 1000)] * 50, tmp_path / "d", codec={0: "zstd:7", "1": "none"})
    assert [field.codec for field in cache.schema] == ["zstd:7", "none"]


def test_the_choice_does_not_depend_on_the_clock(tmp_path, monkeypatch):
    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(f"time.{name}", lambda: 1e9)
    build(factory(80), tmp_path / "a")
    monkeypatch.undo()
    build(factory(80), tmp_path / "b")
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_large_blocks_are_judged_by_pieces_from_all_of_them(tmp_path, monkeypatch):
    """A codec is chosen before the first row is stored: what is compressed for it must not grow with the rows."""
    compressed: list[int] = []
    compress = compression.compress

    def counted(data: Any, level: int) -> bytes:
        compressed.append(len(data))
        return compress(data, level)

    def sample(index: int) -> dict[str, Any]:
        noise = np.random.default_rng(index).integers(0, 256, 6 << 20, np.uint8)
        noise[: 5 << 20] &= 1 if index % 2 else 255
        return {"half": noise, "noise": np.random.default_rng(index).bytes(6 << 20)}

    monkeypatch.setattr("shardcache.format.compression.compress", counted)
    plan = draw_up(Source(Made(4, sample)), Options("source"))
    codecs = {column.name: column.codec for column in plan.columns}
    assert codecs["half"].startswith("zstd:")
    assert codecs["noise"] == "none"
    assert sum(compressed) < 2 * len(DECODE_SPEED) * (5 << 20)
