"""What a peer is: who writes a workload in a format of his own, and reads it again, shuffled, in batches."""

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.peers.data import WORKLOADS, Source, decode

# How batches are asked for.
PROCESS, THREAD, THREADS, WORKERS = "in process", "one thread", "two threads", "two workers"
EPOCHS = (PROCESS, THREAD, THREADS, WORKERS)
SAMPLES, RANDOM, COLD = "sample by sample", "at random", "cold"
MODES = (*EPOCHS, SAMPLES, RANDOM, COLD)

Epoch = Callable[[int], Iterable[Any]]  # number of the epoch -> its batches


@dataclass(frozen=True)
class Task:
    """A workload that a peer has written, or is to write."""

    source: Source
    folder: Path

    @property
    def kind(self) -> str:
        return self.source.workload.kind

    @property
    def batch_size(self) -> int:
        return self.source.workload.batch_size


class Peer:
    """One setting of one library. What it cannot do, a method says by `None`, or `lacks` in words."""

    name = ""
    package = ""  # whose version is recorded
    note = ""  # how it was set up
    modes: tuple[str, ...] = (PROCESS, WORKERS, SAMPLES, RANDOM, COLD)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    kinds: tuple[str, ...] = ("array", "bytes", "text", "decoded")
    keeps_order = True  # what it has written, it numbers as the source does
    is_exclusive = False  # two loaders of the same folder cannot be open at once

    @property
    def store(self) -> str:
        """The folder; peers of the same one share what is written."""
        return self.name

    def load(self) -> None:
        """Import the library, which is not counted with what is measured."""

    def lacks(self) -> str | None:
        """Why it cannot take part here."""
        try:
            importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return f"{self.package} is not installed"
        return None

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def write(self, task: Task, smallest: bool = False) -> None:
        """With two processes, where the library can; ``smallest``: by the setting that takes least room."""
        raise NotImplementedError

    def epochs(self, task: Task, mode: str) -> Epoch:
        raise NotImplementedError

    def samples(self, task: Task) -> Epoch:
        raise NotImplementedError

    def reader(self, task: Task) -> Sequence[Any]:
        raise NotImplementedError

    def parts(self, batch: Any) -> tuple[Sequence[Any], Sequence[int]]:
        """The values of a batch as the source has them, and their indices."""
        return [_plain(x) for x in batch["x"]], [int(index) for index in batch["index"]]

    def rows(self, batch: Any) -> int:
        return len(batch["index"])

    is_bit_exact = True  # else what is delivered is an own decoding of the same images, and only indices are checked


def _plain(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def workers(mode: str) -> int:
    return 2 if mode in (WORKERS, COLD) else 0


def of_workers(mode: str) -> dict[str, Any]:
    """The DataLoader's options: workers that live on from epoch to epoch."""
    return {"num_workers": workers(mode), "persistent_workers": workers(mode) > 0}


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    return {"x": decode(sample["x"]), "index": sample["index"]}


def collate(task: Task) -> Callable[[list[dict[str, Any]]], Any]:
    """For those that deliver single samples: what `DataLoader` does by itself, after decoding if it is wanted."""
    return decoded_collate if task.kind == "decoded" else default_collate


def decoded_collate(samples: list[dict[str, Any]]) -> Any:
    return default_collate([decoded(sample) for sample in samples])


def shuffled_loader(dataset: Dataset[Any], task: Task, mode: str, **options: Any) -> Epoch:
    """A map-style dataset in the ordinary DataLoader."""
    generator = torch.Generator()
    settings: dict[str, Any] = {"batch_size": task.batch_size, "shuffle": True, "collate_fn": collate(task), **options}
    loader: DataLoader[Any] = DataLoader(dataset, generator=generator, **of_workers(mode), **settings)

    def epoch(number: int) -> Iterable[Any]:
        generator.manual_seed(number)
        return loader

    return epoch


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def as_array(data: Any, task: Task) -> Any:
    workload = task.source.workload
    return np.frombuffer(data, workload.dtype).reshape(workload.shape)
