"""LitData: ``optimize`` with two workers and 64 MB chunks, ``StreamingDataset`` in its ``StreamingDataLoader``."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Epoch, Peer, Task, decoded, workers


def _litdata() -> Any:
    """With folders of its own: it empties the default ones, whatever is in them."""
    own = Path(tempfile.gettempdir()) / f"shardcache-benchmark-litdata-{os.getuid()}"
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(own / "chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(own / "data")
    import litdata

    return litdata


class LitData(Peer):
    name = "litdata"
    package = "litdata"
    keeps_order = False  # two processes deal the samples out among themselves
    note = "optimize(chunk_bytes='64MB', num_workers=2); StreamingDataset(shuffle=True), StreamingDataLoader; defaults"

    def load(self) -> None:
        _litdata()

    def write(self, task: Task, smallest: bool = False) -> None:
        options = {"compression": "zstd:22", "compression_level": "chunk"} if smallest else {}
        shutil.rmtree(task.folder)
        _litdata().optimize(
            fn=task.source.__getitem__,
            inputs=list(range(len(task.source))),
            output_dir=str(task.folder),
            chunk_bytes="64MB",
            num_workers=2,
            verbose=False,
            **options,
        )

    def epochs(self, task: Task, mode: str) -> Epoch:
        """Made anew for each epoch: one that was broken off would go on where it was."""

        def epoch(number: int) -> Iterable[Any]:
            return _litdata().StreamingDataLoader(
                self._dataset(task, number), batch_size=task.batch_size, num_workers=workers(mode)
            )

        return epoch

    def samples(self, task: Task) -> Epoch:
        return lambda number: self._dataset(task, number)

    def reader(self, task: Task) -> Sequence[Any]:
        return _litdata().StreamingDataset(str(task.folder))

    def _dataset(self, task: Task, seed: int) -> Any:
        options = {"transform": decoded} if task.kind == "decoded" else {}
        return _litdata().StreamingDataset(str(task.folder), shuffle=True, seed=seed, **options)


LITDATA = LitData()
