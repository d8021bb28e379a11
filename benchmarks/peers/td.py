"""tensordict: memory-mapped tensors, from which a DataLoader reads whole batches by ``__getitems__``."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.peers.peer import COLD, PROCESS, RANDOM, WORKERS, Epoch, Peer, Task, shuffled_loader


def _same(batch: Any) -> Any:
    return batch


class TensorDictMemmap(Peer):
    name = "tensordict"
    package = "tensordict"
    note = "TensorDict.memmap(); load_memmap, DataLoader(shuffle=True, collate_fn=lambda x: x)"
    modes = (PROCESS, WORKERS, RANDOM, COLD)
    kinds = ("array",)

    def load(self) -> None:
        importlib.import_module("tensordict")

    def write(self, task: Task, smallest: bool = False) -> None:  # noqa: ARG002  # there is no smaller setting
        from tensordict import TensorDict

        workload, count = task.source.workload, len(task.source)
        values = torch.empty((count, *workload.shape), dtype=getattr(torch, workload.dtype))
        for index in range(count):
            values[index] = torch.from_numpy(task.source.read(index))
        TensorDict({"x": values, "index": torch.arange(count)}, batch_size=[count]).memmap(str(task.folder))

    def epochs(self, task: Task, mode: str) -> Epoch:
        return shuffled_loader(self._load(task), task, mode, collate_fn=_same)

    def reader(self, task: Task) -> Sequence[Any]:
        return self._load(task)  # type: ignore[no-any-return]

    def _load(self, task: Task) -> Any:
        from tensordict import TensorDict

        return TensorDict.load_memmap(str(task.folder))


TENSORDICT = TensorDictMemmap()
