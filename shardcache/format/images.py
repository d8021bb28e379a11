"""A Pillow image <-> one MessagePack value (:mod:`shardcache.format.spec`, section 6)."""

from typing import Any

import msgspec

from shardcache.errors import MissingExtraError


def encode_image(image: Any) -> bytes:
    """A Pillow image as MessagePack: its mode, size, pixels, palette and transparency."""
    image.load()  # of a file that was opened and not read yet; only then is the palette what it says
    palette = None
    if image.mode in ("P", "PA"):
        mode = image.palette.mode if image.palette is not None else "RGB"
        palette = [mode, bytes(image.getpalette(mode) or [])]
    transparency = image.info.get("transparency")
    if isinstance(transparency, tuple):
        transparency = list(transparency) if all(type(part) is int for part in transparency) else None
    elif type(transparency) not in (int, bytes):
        transparency = None
    return msgspec.msgpack.encode([image.mode, image.width, image.height, image.tobytes(), palette, transparency])


def decode_image(data: Any) -> Any:
    """The Pillow image; ValueError where it is not one, :class:`MissingExtraError` without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("this cache holds images: pip install 'shardcache[images]'") from None
    try:
        mode, width, height, pixels, palette, transparency = msgspec.msgpack.decode(data, type=list)
        if not 0 <= width * height <= 8 * len(pixels):  # before Pillow allocates them
            raise ValueError(f"{len(pixels)} bytes for {width} x {height} pixels")
        image = Image.frombytes(mode, (width, height), pixels) if pixels else Image.new(mode, (width, height))
        if palette is not None:
            image.putpalette(palette[1], palette[0])
    except (MemoryError, Warning):
        raise
    except Exception as error:  # Pillow raises whatever comes
        raise ValueError(f"not an image: {error}") from None
    if transparency is not None:
        image.info["transparency"] = tuple(transparency) if isinstance(transparency, list) else transparency
    return image
