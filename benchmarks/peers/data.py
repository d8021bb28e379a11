"""The workloads: real data of five kinds, laid out as a user has it, and a map-style dataset that reads it.

A sample is ``{"x": ..., "index": i}``. Beside the data lie the checksums of every ``x``, so that whatever a loader
delivers can be compared with its source.
"""

import io
import site
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.peers.photographs import Crops

SEED = 0
DONE = "checksums.npy"  # written last


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    kind: str  # "array", "bytes", "text"; "decoded": bytes of image files, delivered as arrays
    samples: int
    few: int  # of them in short mode
    batch_size: int
    shape: tuple[int, ...] = ()
    dtype: str = "uint8"
    source: str = ""  # the workload whose data it reads, if not its own

    @property
    def folder(self) -> str:
        return self.source or self.name


SIDE = 224  # of the part of an image that is delivered when it is decoded

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("patches", "photograph patches, uint8 32x32x3", "array", 200_000, 2_000, 256, (32, 32, 3)),
        Workload("jpeg", "JPEG files of 20 to 200 KB, as bytes", "bytes", 4_000, 40, 64),
        Workload("decoded", "the same, decoded", "decoded", 4_000, 40, 64, (SIDE, SIDE, 3), source="jpeg"),
        Workload("text", "Python source texts, as strings", "text", 60_000, 600, 64),
        Workload("arrays", "luminance, float32 196x196 (150 KB)", "array", 4_000, 40, 32, (196, 196), "float32"),
        Workload("scenes", "scenes of 8 bands, int16 8x724x724 (8 MB)", "array", 64, 6, 4, (8, 724, 724), "int16"),
    )
}


class Source(Dataset[dict[str, Any]]):
    """The original dataset, of which everybody builds."""

    def __init__(self, workload: Workload, folder: Path, samples: int) -> None:
        self.workload, self.folder, self.samples = workload, folder, samples
        self._opened: Any = None

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.read(index), "index": index}

    def read(self, index: int) -> Any:
        if self.workload.kind in ("bytes", "decoded"):
            return (self.folder / f"{index:06}.jpg").read_bytes()
        if self._opened is None:
            self._opened = self._open()
        if self.workload.kind == "text":
            text, ends = self._opened
            return bytes(text[ends[index] : ends[index + 1]]).decode()
        return np.array(self._opened[index])

    def _open(self) -> Any:
        if self.workload.kind == "text":
            return np.memmap(self.folder / "text.utf8", mode="r"), np.load(self.folder / "ends.npy")
        return np.load(self.folder / "x.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def checksums(self) -> Any:
        """uint64 ``[samples]``, of each ``x`` as it is delivered."""
        name = "decoded.npy" if self.workload.kind == "decoded" else DONE
        return np.load(self.folder / name)[: self.samples]

    def nbytes(self) -> int:
        """Raw size of the data: of the arrays, files or texts themselves."""
        kind = self.workload.kind
        if kind in ("bytes", "decoded"):
            return sum((self.folder / f"{index:06}.jpg").stat().st_size for index in range(self.samples))
        if kind == "text":
            return int(np.load(self.folder / "ends.npy")[self.samples])
        return self.samples * int(np.prod(self.workload.shape)) * np.dtype(self.workload.dtype).itemsize


def checksum(value: Any) -> int:
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, bytes):
        value = np.ascontiguousarray(value)
    return xxhash.xxh3_64_intdigest(value)


def decode(data: bytes) -> Any:
    """uint8 ``[SIDE, SIDE, 3]``: the middle of an image. It is what everybody without a decoder of his own does."""
    return middle(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def middle(image: Any) -> Any:
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    return image[top : top + SIDE, left : left + SIDE]


def prepare(workload: Workload, root: Path, short: bool) -> Source:
    """The source of a workload in ``root``, made if it is not there."""
    folder = root / "source" / workload.folder
    source = Source(workload, folder, workload.few if short else workload.samples)
    if not (folder / DONE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        make = MAKERS[workload.folder]
        np.save(folder / DONE, np.array([checksum(x) for x in make(folder, source.samples)], dtype=np.uint64))
    if workload.kind == "decoded" and not (folder / "decoded.npy").exists():
        sums = [checksum(decode(source.read(index))) for index in range(len(source))]
        np.save(folder / "decoded.npy", np.array(sums, dtype=np.uint64))
    return source


def _stored(folder: Path, samples: int, workload: str, value: Callable[[], Any]) -> Iterator[Any]:
    kind = WORKLOADS[workload]
    shape = (samples, *kind.shape)
    stored: Any = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=kind.dtype, shape=shape)
    for index in range(samples):
        stored[index] = value()
        yield stored[index]
    stored.flush()


def _patches(folder: Path, samples: int) -> Iterator[Any]:
    crops = Crops(SEED)
    return _stored(folder, samples, "patches", lambda: crops.crop(32))


def _jpegs(folder: Path, samples: int) -> Iterator[bytes]:
    crops = Crops(SEED)
    index = 0
    while index < samples:
        data = io.BytesIO()
        side = int(crops.rng.integers(320, 800))
        Image.fromarray(crops.crop(side)).save(data, "jpeg", quality=92)
        if 20_000 <= data.tell() <= 200_000:
            (folder / f"{index:06}.jpg").write_bytes(data.getvalue())
            yield data.getvalue()
            index += 1


def _texts(folder: Path, samples: int) -> Iterator[str]:
    """Pieces of whole lines of Python files, of log-normal length: 200 to 20,000 bytes, most about 1,500."""
    rng = np.random.default_rng(SEED)
    ends = [0]
    with (folder / "text.utf8").open("wb") as file:
        for lines in _python_files():
            while lines and len(ends) <= samples:
                wanted, piece = float(np.clip(rng.lognormal(7.3, 0.8), 200, 20_000)), ""
                while lines and len(piece) < wanted:
                    piece += lines.pop()
                ends.append(ends[-1] + file.write(piece.encode()))
                yield piece
    if len(ends) <= samples:
        raise SystemExit(f"only {len(ends) - 1} texts of {samples} could be cut from the Python files of this machine")
    np.save(folder / "ends.npy", np.array(ends))


def _python_files() -> Iterator[list[str]]:
    for folder in (sysconfig.get_path("stdlib"), *site.getsitepackages()):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                yield path.read_text(encoding="utf-8").splitlines(keepends=True)[::-1]
            except UnicodeDecodeError:
                continue


def _arrays(folder: Path, samples: int) -> Iterator[Any]:
    """Linear luminance of photographs."""
    crops = Crops(SEED)
    weights = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
    linear = (np.arange(256, dtype=np.float32) / 255) ** np.float32(2.2)
    return _stored(folder, samples, "arrays", lambda: linear[crops.crop(196)] @ weights)


def _scenes(folder: Path, samples: int) -> Iterator[Any]:
    """Eight bands of 12 bits, mixed of the three of a photograph, with shot noise."""
    crops = Crops(SEED)
    mixing = crops.rng.dirichlet([1.0, 1.0, 1.0], 8).astype(np.float32)

    def scene() -> Any:
        bands = np.einsum("hwc,bc->bhw", crops.crop(724).astype(np.float32), mixing) * 16
        noise = crops.rng.standard_normal(bands.shape, dtype=np.float32) * np.sqrt(bands + 1) / 4
        return np.clip(bands + noise, 0, 4095)

    return _stored(folder, samples, "scenes", scene)


MAKERS: dict[str, Callable[[Path, int], Iterator[Any]]] = {
    "patches": _patches,
    "jpeg": _jpegs,
    "text": _texts,
    "arrays": _arrays,
    "scenes": _scenes,
}
