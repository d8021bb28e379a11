"""shardcache itself, by default and in the settings that others are compared with."""

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from torch.utils.data import DataLoader

import shardcache
from benchmarks.peers.data import SIDE
from benchmarks.peers.peer import COLD, EPOCHS, MODES, THREAD, THREADS, WORKERS, Epoch, Peer, Task, of_workers


def middle(image: Any) -> Any:  # [3, height, width]
    top, left = (image.shape[1] - SIDE) // 2, (image.shape[2] - SIDE) // 2
    return image[:, top : top + SIDE, left : left + SIDE]


class Ours(Peer):
    package = "shardcache"
    modes = MODES

    def __init__(
        self,
        name: str,
        note: str,
        build: dict[str, Any],
        store: str = "",
        only: tuple[str, ...] = Peer.workloads,
        **options: Any,
    ) -> None:
        self.name, self.note, self.workloads = name, note, only
        self._build, self._store, self._options = build, store or name, options
        if "shuffle_buffer" in options:
            self.modes = EPOCHS
        if "io" in options:
            self.modes = (WORKERS,)

    @property
    def store(self) -> str:
        return self._store

    def version(self) -> str:
        return shardcache.__version__

    def lacks(self) -> str | None:
        return None

    def write(self, task: Task, smallest: bool = False) -> None:
        options: dict[str, Any] = {**self._build, "num_workers": min(2, os.cpu_count() or 1)}
        if smallest:
            options.update(codec="lzma", layout="source", block_bytes=8 << 20)
        shutil.rmtree(task.folder)
        shardcache.build(task.source, task.folder, progress=False, **options)

    def epochs(self, task: Task, mode: str) -> Epoch:
        threads = {THREAD: 1, THREADS: 2}.get(mode, 0)
        dataset = self._dataset(task, batch_size=task.batch_size, threads=threads)
        loader: Iterable[Any] = dataset
        if mode in (WORKERS, COLD):
            loader = DataLoader(dataset, batch_size=None, **of_workers(mode))
        return self._epoch(dataset, loader)

    def samples(self, task: Task) -> Epoch:
        dataset = self._dataset(task, batch_size=None)
        return self._epoch(dataset, dataset)

    def reader(self, task: Task) -> Sequence[Any]:
        return shardcache.open(task.folder)

    def _dataset(self, task: Task, **options: Any) -> shardcache.CachedDataset:
        if task.kind == "decoded":
            options.update(decode={"x": "rgb8"}, transform={"x": middle})
        return shardcache.CachedDataset(task.folder, shuffle=True, **self._options, **options)

    def _epoch(self, dataset: shardcache.CachedDataset, loader: Iterable[Any]) -> Epoch:
        def epoch(number: int) -> Iterable[Any]:
            dataset.set_epoch(number)
            return loader

        return epoch

    def parts(self, batch: Any) -> tuple[Sequence[Any], Sequence[int]]:
        values, indices = super().parts(batch)
        if hasattr(values[0], "shape") and values[0].shape == (3, SIDE, SIDE):
            values = [value.transpose(1, 2, 0) for value in values]
        return values, indices


_RAW = {"codec": "none"}
_LARGE = {**_RAW, "block_bytes": 512 << 10}
SMALL_ROWS = ("patches", "jpeg", "text")  # others have rows that are a block by themselves, or are slow to decode

DEFAULT = Ours("shardcache", "all defaults", {})
RAW = Ours("shardcache-raw", "codec='none', else defaults", _RAW)
MAPPED = Ours("shardcache-raw-mapped", "codec='none', io='mmap' in workers too", _RAW, RAW.store, io="mmap")
LARGE = Ours("shardcache-raw-512k", "codec='none', block_bytes=512 KiB, else defaults", _LARGE, only=SMALL_ROWS)
LARGE_MAPPED = Ours(
    "shardcache-raw-512k-mapped",
    "codec='none', block_bytes=512 KiB, io='mmap' in workers too",
    _LARGE,
    LARGE.store,
    only=SMALL_ROWS,
    io="mmap",
)
BUFFER = Ours(
    "shardcache-raw-8192",
    "codec='none', block_bytes=512 KiB, shuffle_buffer=8192",
    _LARGE,
    LARGE.store,
    only=("patches",),
    shuffle_buffer=8192,
)
ALL = (DEFAULT, RAW, MAPPED, LARGE, LARGE_MAPPED, BUFFER)
