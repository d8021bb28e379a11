"""Grain over ArrayRecord files, one record a group as for random access; a record is an index and the plain bytes."""

import importlib
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.data import decode
from benchmarks.peers.peer import COLD, MODES, PROCESS, THREADS, Epoch, Peer, Task, as_array, workers


class Decode:
    """A record -> a sample."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, record: bytes) -> dict[str, Any]:
        (index,), data = struct.unpack_from("<q", record), record[8:]
        if self.task.kind == "array":
            return {"x": as_array(data, self.task), "index": index}
        if self.task.kind == "text":
            return {"x": data.decode(), "index": index}
        return {"x": decode(data) if self.task.kind == "decoded" else data, "index": index}


class Records:
    """Single samples by index."""

    def __init__(self, source: Any, task: Task) -> None:
        self.source, self.decode = source, Decode(task)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.decode(self.source[index])


def _lists(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"x": [sample["x"] for sample in samples], "index": np.array([sample["index"] for sample in samples])}


class Grain(Peer):
    name = "grain"
    package = "grain"
    note = (
        "ArrayRecordWriter('group_size:1'), 2 files; MapDataset.source().shuffle().map().to_iter_dataset().batch(), "
        "with mp_prefetch for two workers; NumPy batches; smallest: 'group_size:1000,brotli:11'"
    )
    modes = tuple(mode for mode in MODES if mode not in ("one thread",))

    def load(self) -> None:
        importlib.import_module("grain")
        importlib.import_module("array_record.python.array_record_module")

    def write(self, task: Task, smallest: bool = False) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        options, count = "group_size:1000,brotli:11" if smallest else "group_size:1", len(task.source)
        for number, part in enumerate((range(count // 2), range(count // 2, count))):
            writer = ArrayRecordWriter(str(task.folder / f"{number}.array_record"), options)
            for index in part:
                value = task.source.read(index)
                data = value.encode() if isinstance(value, str) else memoryview(value).tobytes()
                writer.write(struct.pack("<q", index) + data)
            writer.close()

    def epochs(self, task: Task, mode: str) -> Epoch:
        def epoch(number: int) -> Iterable[Any]:
            dataset = self._samples(task, number, mode)
            many = task.kind in ("array", "decoded")
            dataset = dataset.batch(task.batch_size, **({} if many else {"batch_fn": _lists}))
            if workers(mode):
                import grain

                dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers(mode)))
            return dataset

        return epoch

    def samples(self, task: Task) -> Epoch:
        return lambda number: self._samples(task, number, PROCESS)

    def _samples(self, task: Task, seed: int, mode: str) -> Any:
        import grain

        dataset = grain.MapDataset.source(self._source(task)).shuffle(seed=seed).map(Decode(task))
        threads = {PROCESS: 0, THREADS: 2, COLD: 16}.get(mode, 0)
        return dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, 500 * threads))
        )

    def reader(self, task: Task) -> Any:
        return Records(self._source(task), task)

    def _source(self, task: Task) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource(sorted(str(path) for path in task.folder.glob("*.array_record")))


GRAIN = Grain()
