"""Files of images, decoded when they are read."""

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardcache
from shardcache import CachedDataset, MissingExtraError, SampleError, UsageError
from shardcache.read.decode import FORMATS

Image = pytest.importorskip("PIL.Image")
EpsImagePlugin = pytest.importorskip("PIL.EpsImagePlugin")

SHAPES = {"rgb8": (3, 5, 4), "rgba8": (4, 5, 4), "gray8": (1, 5, 4)}


def picture(number: int, mode: str = "RGB") -> Any:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(image: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """40 samples of one size, of which every fifth has no second image."""
    samples = [
        {
            "image": png(picture(number)),
            "maybe": png(picture(number)) if number % 5 else None,
            "pixels": picture(number),
            "label": number,
        }
        for number in range(40)
    ]
    shardcache.build(samples, tmp_path / "cache", progress=False)
    return tmp_path / "cache"


def expected(number: int, mode: str) -> torch.Tensor:
    pixels = np.array(picture(number).convert(mode))
    return torch.from_numpy(pixels.reshape(5, 4, -1).transpose(2, 0, 1).copy())


@pytest.mark.parametrize(("kind", "mode"), [("rgb8", "RGB"), ("rgba8", "RGBA"), ("gray8", "L")])
@pytest.mark.parametrize("column", ["image", "pixels"])
def test_a_batch_holds_a_tensor_of_the_decoded_images(cache: Path, kind: str, mode: str, column: str):
    ds = CachedDataset(cache, batch_size=8, shuffle=True, columns=[column, "label"], decode={column: kind})
    for batch in ds:
        assert batch[column].dtype == torch.uint8
        assert batch[column].shape == (8, *SHAPES[kind])
        for image, label in zip(batch[column], batch["label"].tolist(), strict=True):
            assert torch.equal(image, expected(label, mode))


def test_an_image_has_its_channels_last_in_memory_and_a_batch_is_contiguous(cache: Path):
    options = {"columns": ["image"], "decode": {"image": "rgb8"}, "order": "stored"}
    image = next(iter(CachedDataset(cache, **options)))["image"]
    assert image.permute(1, 2, 0).is_contiguous()
    assert next(iter(CachedDataset(cache, batch_size=8, **options)))["image"].is_contiguous()


@pytest.mark.parametrize("options", [{}, {"threads": 2}])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_threads_decode_the_same_before_transforms(cache: Path, workers: int, options: dict[str, Any]):
    def batches(ds: CachedDataset, workers: int) -> list[Any]:
        return [(batch, meta.index) for batch, meta in DataLoader(ds, batch_size=None, num_workers=workers)]

    more = {"batch_size": 8, "shuffle": True, "columns": ["image", "label"], "decode": {"image": "rgb8"}}
    more |= {"transform": {"image": noisy}, "with_meta": True}
    plain = batches(CachedDataset(cache, **more), 0)
    others = batches(CachedDataset(cache, **more, **options), workers)
    assert len(plain) == len(others) == 5
    for (one, index), (other, its) in zip(plain, others, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert one["image"].dtype == torch.float32
        assert torch.equal(index, its)


def noisy(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return image.float() + rng.random()


def test_samples_are_decoded_too_and_none_stays_none(cache: Path):
    ds = CachedDataset(cache, order="stored", decode={"maybe": "gray8", "image": "pil"})
    for sample in pickle.loads(pickle.dumps(ds)):
        label = sample["label"]
        assert sample["image"].tobytes() == picture(label).tobytes()
        if label % 5:
            assert torch.equal(sample["maybe"], expected(label, "L"))
        else:
            assert sample["maybe"] is None


def test_what_is_no_image_names_the_sample_and_the_column(tmp_path: Path):
    good = png(picture(0))
    for bad, why in ((b"no image", "cannot identify"), (good[: len(good) // 2], "")):
        samples = [{"image": good}] * 10 + [{"image": bad}]
        shardcache.build(samples, tmp_path / "cache", if_exists="replace", progress=False)
        ds = CachedDataset(tmp_path / "cache", batch_size=4, order="stored", decode={"image": "rgb8"})
        with pytest.raises(SampleError, match=f"sample 10, column 'image': cannot be decoded: .*{why}"):
            list(ds)
        with pytest.raises(SampleError, match="sample 10, column 'image'"):
            list(DataLoader(ds, batch_size=None, num_workers=2))


def test_what_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow gives PostScript to Ghostscript, found on the PATH."""
    ran, tool = tmp_path / "ran", tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ntouch {ran}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it has not been looked for yet
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(OSError, match=r"Unable to locate Ghostscript|cannot identify"):
        Image.open(io.BytesIO(program)).load()
    assert ran.exists(), "by itself, Pillow runs it"
    ran.unlink()
    shardcache.build([program] * 3, tmp_path / "cache", progress=False)
    for kind in ("rgb8", "pil"):
        with pytest.raises(SampleError, match="cannot be decoded: cannot identify"):
            list(CachedDataset(tmp_path / "cache", batch_size=2, decode={"sample": kind}, order="stored"))
    assert not ran.exists()


@pytest.mark.parametrize("format_", FORMATS)
def test_every_usual_format_is_decoded(tmp_path: Path, format_: str):
    out = io.BytesIO()
    picture(1).save(out, format_)
    shardcache.build([out.getvalue()] * 3, tmp_path / "cache", progress=False)
    for batch in CachedDataset(tmp_path / "cache", batch_size=3, decode={"sample": "rgb8"}, order="stored"):
        assert batch.shape == (3, 3, 5, 4)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shardcache.build([png(picture(0))] * 3, tmp_path / "cache", progress=False)
    ds = CachedDataset(tmp_path / "cache", batch_size=2, decode={"sample": "rgb8"}, order="stored")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(SampleError, match="decompression bomb"):
        list(ds)


def test_palettes_with_transparency_are_decoded_and_deep_pixels_are_not_cut_off(tmp_path: Path):
    clear = png(picture(3, "P"), transparency=bytes(range(256)))
    deep = png(Image.fromarray(np.full((5, 4), 40_000, np.uint16)))
    shardcache.build([clear, clear, deep], tmp_path / "cache", layout="source", progress=False)
    ds = CachedDataset(tmp_path / "cache", batch_size=2, decode={"sample": "rgb8"})
    batches = iter(ds)
    assert torch.equal(next(batches)[0], expected_palette())
    with pytest.raises(SampleError, match=r"sample 2, .*more than 8 bits: 'pil' leaves them"):
        next(batches)


def expected_palette() -> torch.Tensor:
    return torch.from_numpy(np.array(picture(3, "P").convert("RGB"))).permute(2, 0, 1)


def test_images_of_many_sizes_need_a_transform_or_a_word_on_collating(tmp_path: Path):
    sizes = [png(Image.new("RGB", (2 + number, 3))) for number in range(4)]
    shardcache.build(sizes, tmp_path / "cache", layout="source", progress=False)
    options = {"batch_size": 4, "decode": {"sample": "rgb8"}}
    (batch,) = CachedDataset(tmp_path / "cache", **options, collate={"sample": "list"})
    assert [image.shape for image in batch] == [(3, 3, 2 + number) for number in range(4)]
    with pytest.raises(Exception, match="collate"):
        list(CachedDataset(tmp_path / "cache", **options))


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        ({"label": "rgb8"}, "decode for 'label': must be a column of bytes or images, is int"),
        ({"image": "rgb16"}, "decode for 'image': must be 'rgb8', 'rgba8', 'gray8', 'pil', was 'rgb16'"),
        ({"picture": "rgb8"}, "decode for 'picture': there is no such column; the columns are image"),
        ("rgb8", "decode must be a dict by column"),
    ],
)
def test_what_cannot_be_decoded_is_refused(cache: Path, decode: Any, message: str):
    with pytest.raises(UsageError, match=message):
        CachedDataset(cache, batch_size=4, decode=decode)


def test_without_pillow_the_error_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"decode= needs Pillow: pip install 'shardcache\[images\]'"):
        CachedDataset(cache, batch_size=4, decode={"image": "rgb8"})
