"""MosaicML Streaming: shards of the default 64 MB, read where they lie, by ``StreamingDataset`` and its loader."""

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Epoch, Peer, Task, collate, of_workers


def _streaming() -> Any:
    """It imports torchvision for classes that are not used here, and PyPI's is for a CUDA build of torch."""
    if importlib.util.find_spec("torchvision") is None:
        sys.path.append(str(Path(__file__).parent / "stand_in"))
    import streaming

    return streaming


class Mosaic(Peer):
    name = "streaming"
    package = "mosaicml-streaming"
    note = (
        "MDSWriter; StreamingDataset(local=..., shuffle=True, batch_size=...), StreamingDataLoader; defaults; "
        "a stand-in of 10 lines for torchvision"
    )
    is_exclusive = True

    def load(self) -> None:
        _streaming()

    def write(self, task: Task, smallest: bool = False) -> None:
        workload = task.source.workload
        shape = ",".join(map(str, workload.shape))
        encoding = {"text": "str", "array": f"ndarray:{workload.dtype}:{shape}"}.get(workload.kind, "bytes")
        options = {"compression": "zstd:22"} if smallest else {}
        writer = _streaming().MDSWriter(
            out=str(task.folder), columns={"x": encoding, "index": "int"}, exist_ok=True, **options
        )
        with writer:
            for index in range(len(task.source)):
                writer.write(task.source[index])

    def epochs(self, task: Task, mode: str) -> Epoch:
        loader = _streaming().StreamingDataLoader(
            self._dataset(task), batch_size=task.batch_size, collate_fn=collate(task), **of_workers(mode)
        )
        return lambda _: loader  # each ``iter`` begins the next epoch

    def samples(self, task: Task) -> Epoch:
        dataset = self._dataset(task)
        return lambda _: dataset  # each ``iter`` begins the next epoch

    def reader(self, task: Task) -> Sequence[Any]:
        return self._dataset(task)

    def _dataset(self, task: Task) -> Any:
        streaming = _streaming()
        streaming.base.util.clean_stale_shared_memory()
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return streaming.StreamingDataset(local=str(task.folder), shuffle=True, batch_size=task.batch_size)


STREAMING = Mosaic()
