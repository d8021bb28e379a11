"""The original dataset in an ordinary DataLoader: as Python objects in memory, as it lies on disk, and as a memmap."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.peers.peer import COLD, PROCESS, RANDOM, WORKERS, Epoch, Peer, Task, shuffled_loader


class Items(Dataset[dict[str, Any]]):
    """Single values by index, which DataLoader collates."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        value = self.values[index]
        if isinstance(value, np.memmap):
            value = torch.from_numpy(np.array(value))
        return {"x": value, "index": index}


class Plain(Peer):
    package = "torch"
    modes = (PROCESS, WORKERS, RANDOM)

    def write(self, task: Task, smallest: bool = False) -> None:
        """The source is what it reads."""

    def reader(self, task: Task) -> Sequence[Any]:
        return self.dataset(task)  # type: ignore[return-value]

    def epochs(self, task: Task, mode: str) -> Epoch:
        return shuffled_loader(self.dataset(task), task, mode)

    def dataset(self, task: Task) -> Dataset[Any]:
        raise NotImplementedError


class Objects(Plain):
    name = "objects"
    note = "the samples as a list of Python objects in memory; map-style, shuffle=True"

    def dataset(self, task: Task) -> Dataset[Any]:
        values: Iterable[Any] = (task.source.read(index) for index in range(len(task.source)))
        if task.kind == "array":
            values = (torch.from_numpy(value) for value in values)
        return Items(list(values))


class Files(Plain):
    name = "source"
    note = "the original dataset, which reads its files anew; map-style, shuffle=True"
    kinds = ("bytes", "text", "decoded")
    modes = (*Plain.modes, COLD)

    def dataset(self, task: Task) -> Dataset[Any]:
        return task.source


class Memmap(Plain):
    name = "memmap"
    note = "a NumPy file, memory-mapped; map-style, shuffle=True"
    kinds = ("array",)
    modes = (*Plain.modes, COLD)

    def write(self, task: Task, smallest: bool = False) -> None:  # noqa: ARG002  # there is no smaller setting
        shape = (len(task.source), *task.source.workload.shape)
        stored = np.lib.format.open_memmap(
            task.folder / "x.npy", mode="w+", dtype=task.source.workload.dtype, shape=shape
        )
        for index in range(len(task.source)):
            stored[index] = task.source.read(index)
        stored.flush()

    def dataset(self, task: Task) -> Dataset[Any]:
        return Items(np.load(task.folder / "x.npy", mmap_mode="r"))


OBJECTS, SOURCE, MEMMAP = Objects(), Files(), Memmap()
