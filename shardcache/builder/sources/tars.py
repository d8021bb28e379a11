"""Tar files as WebDataset has them: files that follow each other and differ in what is behind the first dot."""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from shardcache.builder.sources.patterns import files_of
from shardcache.errors import SourceError

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # up to the first dot of the name; what is behind it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}

Parts = dict[str, tuple[int, int]]  # by extension: where the bytes lie, and how many


class WebDataset:
    """Samples of tar files: ``{"__key__": str, "jpg": bytes, "cls": bytes, ...}``, in the order of the files.

    The headers are read once; then any sample is read by itself. As in WebDataset, files that follow each other are one
    sample where their paths are the same up to the first dot of the name; the rest, in small letters, names the part.

    Args:
        patterns: ``*``, ``?``, ``[...]``, ``**`` (any depth), ``{a,b}``, ``{000..146}``.

    Raises:
        SourceError: nothing matches, or a file is not a whole tar, is compressed, or has a part of a sample twice.
    """

    def __init__(self, *patterns: str | os.PathLike[str]) -> None:
        self.paths = files_of(patterns)
        self._samples = [(file, *sample) for file, path in enumerate(self.paths) for sample in _samples(path)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, key, parts = self._samples[index]
        sample: dict[str, Any] = {"__key__": key}
        with open(self.paths[file], "rb") as opened:
            for name, (offset, size) in parts.items():
                opened.seek(offset)
                sample[name] = opened.read(size)
                if len(sample[name]) < size:
                    raise SourceError(
                        f"{self.paths[file]}: ends within {key}.{name}; was it changed since it was listed?"
                    )
        return sample


def _samples(path: str) -> Iterator[tuple[str, Parts]]:
    """The key and the parts of each sample of a tar."""
    last = ""
    parts: Parts = {}
    for name, offset, size in _members(path):
        match = _KEY.fullmatch(name)
        if match is None:
            continue
        key, part = match[1], match[2].lower()
        if key != last and parts:
            yield last, parts
            parts = {}
        if part in parts:
            raise SourceError(f"{path}: {name}: sample {key!r} has a part {part!r} already")
        last, parts[part] = key, (offset, size)
    if parts:
        yield last, parts


def _members(path: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of the files in a tar; not of its own notes, ``__like_this__``."""
    try:
        _refuse_compressed(path)
        whole = os.path.getsize(path)
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > whole:
                    raise SourceError(f"{path}: ends within {member.name} (a download that was cut off?)")
                tar.members = []  # type: ignore[attr-defined]  # it would remember all of them
                if member.isreg() and not member.issparse() and not re.fullmatch(r"__[^/]*__", member.name):
                    yield member.name, member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{path}: cannot be read as a tar: {error}") from error


def _refuse_compressed(path: str) -> None:
    with open(path, "rb") as file:
        kind = _COMPRESSED.get(file.read(2))
    if kind is not None:
        raise SourceError(f"{path}: is compressed ({kind}), so no sample can be read by itself: decompress it first")
