"""Files by pattern, and folders of classes."""

import os
from pathlib import Path
from typing import Any

from shardcache.builder.sources.patterns import files_of, folder_of
from shardcache.errors import SourceError

# What torchvision's ImageFolder takes for an image.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Files:
    """Files that match patterns: ``{"path": str, "data": bytes}`` each, in the order of their paths.

    Args:
        patterns: ``*``, ``?``, ``[...]``, ``**`` (any depth), ``{a,b}``, ``{00..17}``.

    Raises:
        SourceError: nothing matches a pattern.
    """

    def __init__(self, *patterns: str | os.PathLike[str]) -> None:
        self.paths = files_of(patterns)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"path": path, "data": Path(path).read_bytes()}


class ImageFolder:
    """A folder for each class, with images in it at any depth: ``{"image": bytes, "label": int, "class": str}``.

    Classes are the names of the folders, sorted, and ``label`` counts them from 0; images are sorted by path. That is
    the order, and what counts as an image, of torchvision's ImageFolder.

    Args:
        root: the folder that holds the folders.

    Raises:
        SourceError: there is no such folder, it holds no folder, or a class has no images.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = folder_of(root)
        self.classes = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        if not self.classes:
            raise SourceError(f"{self.root}: there must be a folder for each class, there is none")
        self.samples = [
            (path, label) for label, name in enumerate(self.classes) for path in _images(str(self.root / name))
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.samples[index]
        return {"image": Path(path).read_bytes(), "label": label, "class": self.classes[label]}


def _images(folder: str) -> list[str]:
    """The images below a folder, sorted as torchvision does; links to folders are followed, but not in a circle."""
    listed, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        listed.append((parent, sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))))
    images = [os.path.join(parent, name) for parent, names in sorted(listed) for name in names]
    if not images:
        raise SourceError(f"{folder}: a class must have images ({', '.join(IMAGE_SUFFIXES)}), this one has none")
    return images


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be listed: {error.strerror}") from error
