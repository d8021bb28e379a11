"""Hugging Face datasets: an Arrow dataset from ``Dataset.from_generator``, map-style and iterable."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.peers.data import Source
from benchmarks.peers.peer import COLD, PROCESS, RANDOM, SAMPLES, WORKERS, Epoch, Peer, Task, collate, of_workers


def _rows(source: Source, shards: list[range]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for index in shard:
            yield source[index]


class HuggingFace(Peer):
    package = "datasets"

    @property
    def store(self) -> str:
        return "hugging-face"

    def load(self) -> None:
        importlib.import_module("datasets")

    def write(self, task: Task, smallest: bool = False) -> None:
        import datasets

        datasets.disable_progress_bars()
        count = len(task.source)
        made = datasets.Dataset.from_generator(
            _rows,
            features=datasets.Features({"x": _feature(task), "index": datasets.Value("int64")}),
            cache_dir=str(task.folder / "building"),
            gen_kwargs={"source": task.source, "shards": [range(count // 2), range(count // 2, count)]},
            num_proc=2,
        )
        if smallest:
            import pyarrow.parquet

            pyarrow.parquet.write_table(
                made.data.table, task.folder / "all.parquet", compression="zstd", compression_level=22
            )
        else:
            made.save_to_disk(str(task.folder / "saved"))
        _delete(task.folder / "building")

    def _dataset(self, task: Task) -> Any:
        import datasets

        return datasets.load_from_disk(str(task.folder / "saved"))

    def _formatted(self, dataset: Any, task: Task) -> Any:
        """Arrays as tensors of their own dtype (`torch` alone makes all integers int64); the rest as it is."""
        if task.kind != "array":
            return dataset
        dtype = getattr(torch, task.source.workload.dtype)
        return dataset.with_format("torch", columns=["x"], output_all_columns=True, dtype=dtype)


class MapStyle(HuggingFace):
    name = "hf-map"
    note = "save_to_disk; with_format('torch'); DataLoader with a BatchSampler; smallest: Parquet, zstd 22"
    modes = (PROCESS, WORKERS, RANDOM, COLD)

    def epochs(self, task: Task, mode: str) -> Epoch:
        dataset = self._formatted(self._dataset(task), task)
        generator = torch.Generator()
        order = BatchSampler(RandomSampler(dataset, generator=generator), task.batch_size, drop_last=False)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=None, sampler=order, collate_fn=_collate_columns(task), **of_workers(mode)
        )

        def epoch(number: int) -> Iterable[Any]:
            generator.manual_seed(number)
            return loader

        return epoch

    def reader(self, task: Task) -> Sequence[Any]:
        return self._formatted(self._dataset(task), task)  # type: ignore[no-any-return]


class Iterating(HuggingFace):
    name = "hf-iterable"
    note = (
        "to_iterable_dataset(num_shards=64).shuffle(buffer_size=1000), with_format('torch'), which makes all integers "
        "int64; DataLoader"
    )
    modes = (PROCESS, WORKERS, SAMPLES, COLD)

    def epochs(self, task: Task, mode: str) -> Epoch:
        dataset = self._iterable(task)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=task.batch_size, collate_fn=collate(task), **of_workers(mode)
        )

        def epoch(number: int) -> Iterable[Any]:
            dataset.set_epoch(number)
            return loader

        return epoch

    def samples(self, task: Task) -> Epoch:
        dataset = self._iterable(task)

        def epoch(number: int) -> Iterable[Any]:
            dataset.set_epoch(number)
            return dataset

        return epoch

    def parts(self, batch: Any) -> tuple[Sequence[Any], Sequence[int]]:
        values, indices = super().parts(batch)
        return [_as_stored(value) for value in values], indices

    def _iterable(self, task: Task) -> Any:
        stored = self._dataset(task)
        shards = stored.to_iterable_dataset(num_shards=min(64, len(stored))).shuffle(seed=0, buffer_size=1000)
        if task.kind != "array":
            return shards
        return shards.with_format("torch")


def _feature(task: Task) -> Any:
    import datasets

    workload = task.source.workload
    if workload.kind == "array":
        kinds = {2: datasets.Array2D, 3: datasets.Array3D}
        return kinds[len(workload.shape)](shape=workload.shape, dtype=workload.dtype)
    return datasets.Value("string" if workload.kind == "text" else "binary")


def _as_stored(value: Any) -> Any:
    """int64 values of smaller types: those of our workloads are told apart by their shape."""
    if getattr(value, "dtype", None) != np.int64:
        return value
    return value.astype(np.uint8 if value.shape[-1] == 3 else np.int16)


def _collate_columns(task: Task) -> Any:
    return _decoded_columns if task.kind == "decoded" else _as_tensors


def _as_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return {"x": batch["x"], "index": torch.as_tensor(np.asarray(batch["index"]))}


def _decoded_columns(batch: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.peers.data import decode

    values = np.stack([decode(data) for data in batch["x"]])
    return {"x": torch.from_numpy(values), "index": torch.as_tensor(np.asarray(batch["index"]))}


def _delete(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


HF_MAP, HF_ITERABLE = MapStyle(), Iterating()
