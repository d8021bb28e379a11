"""Files of images in a cache (PNG, JPEG, ... as their bytes) -> tensors, when they are read."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from shardcache.errors import MissingExtraError, SampleError, UsageError
from shardcache.format.permutation import Integers
from shardcache.format.schema import ABSENT
from shardcache.read.fields import Field

MODES = {"rgb8": "RGB", "rgba8": "RGBA", "gray8": "L", "pil": None}  # Pillow's mode; None: as it is
# Of Pillow's formats those that only decode. Others are not for bytes from anywhere: of EPS it makes an image by
# running Ghostscript, a programming language, on it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
_DEEP = ("I", "F")  # with I;16 and its like: more than 8 bits, which convert() would cut off


class Decoder:
    """What becomes of the values of a column: see ``decode`` of :class:`~shardcache.CachedDataset`."""

    def __init__(self, field: Field, kind: str) -> None:
        if field.type not in ("bytes", "image"):
            raise UsageError(f"decode for {field.name!r}: must be a column of bytes or images, is {field}")
        if kind not in MODES:
            raise UsageError(f"decode for {field.name!r}: must be {', '.join(map(repr, MODES))}, was {kind!r}")
        try:
            from PIL import Image
        except ImportError:
            raise MissingExtraError("decode= needs Pillow: pip install 'shardcache[images]'") from None
        Image.init()
        self._formats = [name for name in FORMATS if name in Image.OPEN]
        self._name, self._mode = field.name, MODES[kind]

    def all(self, values: Sequence[Any], sources: Integers) -> list[Any]:
        """The values, decoded; None stays None. :class:`SampleError` names the sample of what is no image."""
        out = []
        for value, source in zip(values, sources.tolist(), strict=True):
            try:
                out.append(value if value is None or value is ABSENT else self._decoded(value))
            except (MemoryError, Warning):
                raise
            except Exception as error:  # Pillow raises whatever comes
                raise SampleError(f"sample {source}, column {self._name!r}: cannot be decoded: {error}") from error
        return out

    def _decoded(self, value: Any) -> Any:
        from PIL import Image

        image = Image.open(io.BytesIO(value), formats=self._formats) if isinstance(value, bytes) else value
        if self._mode is None:
            image.load()
            return image
        if image.mode.startswith(_DEEP):
            raise ValueError(f"pixels of mode {image.mode} have more than 8 bits: 'pil' leaves them")
        if image.mode == "P" and self._mode != "RGBA" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of what the direct way would lose
        # No copy where the mode is right, and none to put the channels first in memory: whoever crops the image or
        # stacks a batch copies less of it.
        pixels = torch.from_numpy(np.array(image if image.mode == self._mode else image.convert(self._mode)))
        return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def decoders_of(decode: Mapping[Any, str] | None, fields: Sequence[Field]) -> dict[str, Decoder]:
    """A decoder for each column that is named; :class:`UsageError` where there is none of that name."""
    if not isinstance(decode, Mapping | None):
        raise UsageError(f"decode must be a dict by column, like {{'image': 'rgb8'}}, was {decode!r}")
    by_name = {field.name: field for field in fields}
    for name in map(str, decode or {}):
        if name not in by_name:
            raise UsageError(f"decode for {name!r}: there is no such column; the columns are {', '.join(by_name)}")
    return {str(name): Decoder(by_name[str(name)], kind) for name, kind in (decode or {}).items()}
