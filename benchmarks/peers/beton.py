"""FFCV: ``DatasetWriter`` with two workers, and its ``Loader``, which is threads and no processes."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.data import SIDE
from benchmarks.peers.peer import COLD, THREAD, THREADS, Epoch, Peer, Task


class AsImages:
    """The source with its images decoded: `RGBImageField` takes arrays."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        import io

        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.source.read(index))).convert("RGB")), index


class AsTuples(AsImages):
    def __getitem__(self, index: int) -> Any:
        value = self.source.read(index)
        if isinstance(value, (bytes, str)):
            value = np.frombuffer(value.encode() if isinstance(value, str) else value, dtype=np.uint8)
            return value, index, len(value)
        return value, index


class FFCV(Peer):
    name = "ffcv"
    package = "ffcv"
    note = (
        "DatasetWriter(num_workers=2); Loader(order=RANDOM, os_cache=True), cold QUASI_RANDOM and os_cache=False; "
        "bytes and texts in a BytesField beside their length, which pads each to the longest of all; "
        "images in RGBImageField('jpg', quality 92), by its own decoder, which crops the middle square and resizes it"
    )
    modes = (THREAD, THREADS, COLD)

    def lacks(self) -> str | None:
        missing = super().lacks()
        return f"{missing}; it needs Debian's libopencv-dev, libturbojpeg0-dev and pkg-config" if missing else None

    @property
    def is_bit_exact(self) -> bool:  # type: ignore[override]
        return self._is_bit_exact

    _is_bit_exact = True

    def load(self) -> None:
        importlib.import_module("ffcv.writer")
        importlib.import_module("ffcv.loader")

    def write(self, task: Task, smallest: bool = False) -> None:  # noqa: ARG002  # there is no smaller setting
        from ffcv.fields import BytesField, IntField, NDArrayField, RGBImageField
        from ffcv.writer import DatasetWriter

        workload = task.source.workload
        fields: dict[str, Any] = {"x": BytesField(), "index": IntField(), "size": IntField()}
        rows: Any = AsTuples(task.source)
        if task.kind == "array":
            fields = {"x": NDArrayField(np.dtype(workload.dtype), workload.shape), "index": IntField()}
        if task.kind == "decoded":
            fields = {"x": RGBImageField("jpg", jpeg_quality=92), "index": IntField()}
            rows = AsImages(task.source)
        page = max(8 << 20, 1 << int(np.ceil(np.log2(2 * _largest(task)))))
        DatasetWriter(str(task.folder / "all.beton"), fields, page_size=page, num_workers=2).from_indexed_dataset(rows)

    def epochs(self, task: Task, mode: str) -> Epoch:
        from ffcv.fields.decoders import BytesDecoder, CenterCropRGBImageDecoder, IntDecoder, NDArrayDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        self._is_bit_exact = task.kind != "decoded"
        decoders = {"array": NDArrayDecoder, "bytes": BytesDecoder, "text": BytesDecoder}
        first = CenterCropRGBImageDecoder((SIDE, SIDE), 1.0) if task.kind == "decoded" else decoders[task.kind]()
        pipelines = {"x": [first, ToTensor()], "index": [IntDecoder(), ToTensor()]}
        if task.kind in ("bytes", "text"):
            pipelines["size"] = [IntDecoder(), ToTensor()]
        loader = Loader(
            str(task.folder / "all.beton"),
            batch_size=task.batch_size,
            num_workers=1 if mode == THREAD else 2,
            order=OrderOption.QUASI_RANDOM if mode == COLD else OrderOption.RANDOM,
            os_cache=mode != COLD,
            drop_last=False,
            pipelines=pipelines,
        )
        return lambda _: loader  # each ``iter`` draws a new order

    def parts(self, batch: Any) -> tuple[Sequence[Any], Sequence[int]]:
        values, indices = batch[0].numpy(), [int(index) for index in batch[1].flatten()]
        if len(batch) == 3:
            sizes = [int(size) for size in batch[2].flatten()]
            return [bytes(value[:size]) for value, size in zip(values, sizes, strict=True)], indices
        return list(values), indices

    def rows(self, batch: Any) -> int:
        return len(batch[1])


def _largest(task: Task) -> int:
    """Bytes of the largest sample: a page must hold it."""
    if task.kind == "array":
        return int(np.prod(task.source.workload.shape)) * np.dtype(task.source.workload.dtype).itemsize
    return 1 << 20


FFCV_LOADER = FFCV()
