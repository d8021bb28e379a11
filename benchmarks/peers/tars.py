"""WebDataset: tar files of at most 64 MB, shuffled by shard and in a buffer of 1,000 samples, batched in workers."""

import importlib
import io
from typing import Any

import numpy as np

from benchmarks.peers.data import decode
from benchmarks.peers.peer import COLD, PROCESS, SAMPLES, WORKERS, Epoch, Peer, Task, of_workers

SUFFIX = {"array": "npy", "text": "txt", "bytes": "jpg", "decoded": "jpg"}


def _load(data: bytes) -> Any:
    return np.load(io.BytesIO(data))


class WebDataset(Peer):
    name = "webdataset"
    package = "webdataset"
    note = (
        "ShardWriter(maxsize=64 MB); WebDataset(shardshuffle=100).shuffle(1000).batched(), WebLoader; "
        "smallest: the tar files by gzip -9"
    )
    modes = (PROCESS, WORKERS, SAMPLES, COLD)

    def load(self) -> None:
        importlib.import_module("webdataset")

    def write(self, task: Task, smallest: bool = False) -> None:
        import webdataset

        suffix = SUFFIX[task.kind]
        pattern = str(task.folder / ("%06d.tar.gz" if smallest else "%06d.tar"))
        options = {"compress": True} if smallest else {}
        maxsize = min(64e6, task.source.nbytes() / 4)  # a shard at least for each worker
        with webdataset.ShardWriter(pattern, maxsize=maxsize, maxcount=1 << 40, verbose=0, **options) as writer:
            for index in range(len(task.source)):
                sample = task.source[index]
                writer.write({"__key__": f"{index:09}", suffix: sample["x"], "cls": index})

    def epochs(self, task: Task, mode: str) -> Epoch:
        import webdataset

        dataset = self._samples(task).batched(task.batch_size)
        loader = webdataset.WebLoader(dataset, batch_size=None, **of_workers(mode))
        return lambda _: loader  # shuffled anew by each ``iter``

    def samples(self, task: Task) -> Epoch:
        dataset = self._samples(task)
        return lambda _: dataset  # shuffled anew by each ``iter``

    def _samples(self, task: Task) -> Any:
        import webdataset

        files = sorted(str(path) for path in task.folder.glob("*.tar*"))
        dataset = webdataset.WebDataset(files, shardshuffle=100, empty_check=False).shuffle(1000)
        read = {"array": _load, "decoded": decode, "text": bytes.decode, "bytes": bytes}[task.kind]
        return dataset.to_tuple(SUFFIX[task.kind], "cls").map_tuple(read, int)

    def parts(self, batch: Any) -> tuple[Any, Any]:
        return super().parts({"x": batch[0], "index": batch[1]})

    def rows(self, batch: Any) -> int:
        return len(batch[1])


WEBDATASET = WebDataset()
