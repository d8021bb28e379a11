"""Datasets as users write them, and what a batch of each must hold."""

import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import shardcache
from shardcache import Cache, DamagedBlockError


class Source(Dataset[Any]):
    """``size`` samples that follow from their index. ``tensors`` names the leaves that a batch holds as a tensor."""

    size = 0
    tensors: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return self.size


class Images(Source):
    """Sorted by class, as folders of images are."""

    size = 600
    tensors = frozenset({"0", "1"})

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = (torch.arange(3 * 5 * 4) * 7 + index * 13) % 256
        return image.to(torch.uint8).view(3, 5, 4), index // 60


class Texts(Source):
    """Everything that has no fixed length, and some that are empty."""

    size = 251
    tensors = frozenset({"number"})

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "text": "".join(chr(0x20 + (index * k) % 0x2F00) for k in range(index % 17)),
            "data": bytes(index * k % 256 for k in range(index % 40)),
            "tokens": np.arange(index, index + index % 9, dtype=np.uint16),
            "wave": torch.full((1 + index % 5, 2), index, dtype=torch.bfloat16),
            "number": index - 100,
        }


class Detections(Source):
    """Boxes of any number, fields that are missing or None, structures that vary."""

    size = 200
    tensors = frozenset({"image", "meta/id"})

    def __getitem__(self, index: int) -> dict[str, Any]:
        boxes = index % 4
        sample: dict[str, Any] = {
            "image": torch.full((2, 2), index, dtype=torch.float32),
            "boxes": torch.arange(boxes * 4, dtype=torch.float32).view(boxes, 4) + index,
            "labels": [index % 7] * boxes,
            "mask": torch.ones(2, 2) * index if index % 3 else None,
            "parts": [{"at": (index, k), "name": None if k else "head"} for k in range(index % 3)],
            "meta": {"id": index},
        }
        if index % 2:
            sample["caption"] = f"thing {index}"
        if index % 5 == 0:
            sample["meta"]["difficult"] = True
        return sample


DTYPES = "bool u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 c8 c16 >u2 >i4 >u8 >f4 >f8 >c8".split()
TENSOR_DTYPES = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]
TENSOR_DTYPES += [torch.complex64, torch.float16, torch.bool]


class Columns(Source):
    """A column of every dtype: arrays, scalars, tensors, plain values; and what no tensor holds, as dates and text."""

    size = 150
    tensors = frozenset(
        [f"array {name}" for name in DTYPES]
        + [f"scalar {name}" for name in DTYPES if name[0] != ">"]
        + [f"tensor {dtype}" for dtype in TENSOR_DTYPES]
        + ["int", "float", "truth", "empty", "zero"]
    )

    def __getitem__(self, index: int) -> dict[str, Any]:
        bits = np.random.default_rng(index)
        sample: dict[str, Any] = {}
        for name in DTYPES:
            dtype = np.dtype(name)
            raw = bits.integers(0, 2 if name == "bool" else 256, 6 * dtype.itemsize, np.uint8)
            sample[f"array {name}"] = np.frombuffer(raw.tobytes(), dtype).reshape(3, 2)
            if name[0] != ">":
                sample[f"scalar {name}"] = sample[f"array {name}"].reshape(-1)[0]
        for dtype in TENSOR_DTYPES:
            raw = torch.from_numpy(bits.integers(0, 2 if dtype is torch.bool else 256, 3 * dtype.itemsize, np.uint8))
            sample[f"tensor {dtype}"] = raw.view(dtype)
        return {
            **sample,
            "int": index * (-1) ** index,
            "float": index / 3 if index else float("nan"),
            "truth": index % 3 == 0,
            "empty": torch.empty(0, 3),
            "zero": torch.tensor(index),
            "date": np.array([index, -index], "M8[s]"),
            "span": np.timedelta64(index, "D"),
            "name": np.array([f"n{index}", ""], "U5"),
            "raw": np.array([b"ab", b"c"], "S3"),
            "long": np.array([index / 7], np.longdouble),
            "big": 1 << index,
            "none": None,
            "maybe": index if index % 2 else None,
        }


class Point(NamedTuple):
    x: int
    way: Tensor


class Records(Source):
    """Other containers: a namedtuple, an OrderedDict, lists; a sample of one value is ``Single``."""

    size = 90
    tensors = frozenset({"0/x", "0/way", "1/b", "1/a", "2/0"})

    def __getitem__(self, index: int) -> list[Any]:
        return [Point(index, torch.arange(2) + index), OrderedDict(b=index, a=-index), [index, "s" * (index % 3)]]


class Single(Source):
    size = 70
    tensors = frozenset({"sample"})

    def __getitem__(self, index: int) -> Tensor:
        return torch.arange(5) * index


class OneRow(Images):
    size = 1


class Few(Images):
    """Fewer samples than there are workers."""

    size = 3


class Numbers(Source):
    """What is in a batch is seen at once: (index, vector of the index)."""

    tensors = frozenset({"0", "1"})

    def __init__(self, size: int = 1000) -> None:
        self.size = size

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.full((8,), index, dtype=torch.int32)


SOURCES: dict[str, Source] = {
    "images": Images(),
    "texts": Texts(),
    "detections": Detections(),
    "columns": Columns(),
    "records": Records(),
    "single": Single(),
    "one row": OneRow(),
    "few": Few(),
    "numbers": Numbers(),
}


def native(value: Any) -> Any:
    """What an array or a scalar is in a batch or a ragged list."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype != np.longdouble:
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value


def as_tensor(value: Any) -> Tensor:
    """One row of a stacked column."""
    if isinstance(value, np.generic):
        return torch.from_numpy(np.array([value]))[0]
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    value = native(value)
    return value if isinstance(value, Tensor) else torch.tensor(value)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """The same types, dtypes, shapes and bits all the way down."""
    assert type(found) is type(expected) or type(found).__name__ == type(expected).__name__ == "Point", where
    if isinstance(expected, Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        assert bits(found) == bits(expected), where
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        if expected.dtype == np.longdouble:  # has bytes that mean nothing
            assert np.array_equal(found, expected), where
        else:
            assert found.tobytes() == expected.tobytes(), where
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}/{number}")
    elif isinstance(expected, float):
        assert repr(found) == repr(expected), where
    else:
        assert found == expected, where


def bits(tensor: Tensor) -> bytes:
    packed = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))  # in the strides of no one else
    return packed.view(torch.uint8).numpy().tobytes()


def assert_batch(batch: Any, samples: Sequence[Any], tensors: frozenset[str], where: str = "") -> None:
    """Whether a batch holds these samples: tensors for the named leaves, lists for the others, the same structure."""
    first = next((sample for sample in samples if sample is not None), None)
    if where not in tensors and "/" not in where and where in ("labels", "parts"):
        pass  # plain nested values: one leaf
    elif isinstance(first, Mapping):
        for key in batch:
            assert_batch(batch[key], [sample.get(key) for sample in samples], tensors, f"{where}/{key}".lstrip("/"))
        assert {key for sample in samples for key in sample} <= set(batch), where
        return
    elif isinstance(first, (tuple, list)):
        assert type(batch) is type(first) or type(batch).__name__ == type(first).__name__, where
        assert len(batch) == len(first), where
        for number, key in enumerate(getattr(first, "_fields", range(len(first)))):
            parts = [sample[number] for sample in samples]
            assert_batch(batch[number], parts, tensors, f"{where}/{key}".lstrip("/"))
        return
    if (where or "sample") in tensors:
        assert type(batch) is Tensor, where
        expected = torch.stack([as_tensor(sample).reshape(1, -1).contiguous().view(torch.uint8) for sample in samples])
        assert batch.dtype is as_tensor(first).dtype, where
        assert batch.shape == (len(samples), *as_tensor(first).shape), where
        assert bits(batch) == bits(expected), where
    else:
        assert type(batch) is list, where
        ragged = where in ("tokens", "wave", "boxes")
        assert_same(batch, [native(sample) if ragged else sample for sample in samples], where)


def assert_epoch(batches: Any, source: Source, batch_size: int = 16) -> list[int]:
    """Whether ``(batch, meta)`` pairs hold every sample once, as it is; the indices in the order they came."""
    seen: list[int] = []
    for batch, meta in batches:
        index = meta.index.tolist()
        assert bool(meta.valid.all())
        assert len(index) <= batch_size
        assert_batch(batch, [source[number] for number in index], source.tensors)
        seen += index
    assert sorted(seen) == list(range(len(source)))
    return seen


class Chain(IterableDataset[Any]):
    """Data sets one after another, as a user wraps them; says which one an item is of."""

    def __init__(self, parts: Mapping[str, IterableDataset[Any]]) -> None:
        self.parts = parts

    def __iter__(self) -> Any:
        for name, part in self.parts.items():
            for item in part:
                yield name, item


class Mapped(IterableDataset[Any]):
    """A data set with a function over it, as a user wraps it."""

    def __init__(self, data: IterableDataset[Any], function: Callable[[Any], Any]) -> None:
        self.data, self.function = data, function

    def __iter__(self) -> Any:
        return map(self.function, self.data)


def load(dataset: IterableDataset[Any], workers: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


def exhaust(loader: DataLoader[Any]) -> None:
    """Iterate to the end; after an error end the workers at once, for which torch would wait seconds."""
    batches = iter(loader)
    try:
        for _ in batches:
            pass
    finally:
        close(batches)


def close(batches: Any) -> None:
    """End the workers of an iteration that stopped before its end."""
    getattr(getattr(batches, "_batches", batches), "_shutdown_workers", int)()


def numbers(batches: Any) -> list[list[int]]:
    """The contents of batches of :class:`Numbers`, each seen to be whole."""
    found = []
    for index, vectors in batches:
        assert vectors.dtype is torch.int32
        assert torch.equal(vectors, index.to(torch.int32)[:, None].expand(-1, 8))
        found.append(index.tolist())
    return found


def damaged(cache: Cache, directory: Path, number: int, position: int) -> Cache:
    """A copy of a cache of codec "none" in ``directory``, in which one stored value is changed."""
    path = directory / "damaged"
    shutil.copytree(cache.path, path)
    (block,) = (rows._data for rows in cache.blocks.read(number, [position]).values())
    stored = bytes(block)
    for shard in sorted(path.glob("*")):
        data = bytearray(shard.read_bytes())
        place = data.find(stored)
        if place >= 0:
            assert data.count(stored) == 1
            data[place + len(stored) // 2] ^= 0x40
            shard.write_bytes(data)
            return shardcache.open(path)
    raise AssertionError("the value was not found")


def outcome(batches: Any) -> str:
    try:
        return str(len(next(batches)[0]))
    except DamagedBlockError:
        return "error"
