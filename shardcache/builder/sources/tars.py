"""Tar files as WebDataset has them: files that follow each other and differ in what is behind the first dot."""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from shardcache.builder.sources.patterns import files_of
from shardcache.errors import SourceError

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # up to the first dot of the name; what is behind it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_OPENERS: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_PIECE_BYTES = 1 << 20

Place = tuple[int, int]  # where the bytes lie, and how many
Part = TypeVar("Part")  # a place, or the bytes


class WebDataset:
    """Samples of tar files: ``{"__key__": str, "jpg": bytes, "cls": bytes, ...}``, in the order of the files.

    The headers are read once; then any sample is read by itself. As in WebDataset, files that follow each other are one
    sample where their paths are the same up to the first dot of the name; the rest, in small letters, names the part.

    Args:
        patterns: ``*``, ``?``, ``[...]``, ``**`` (any depth), ``{a,b}``, ``{000..146}``.

    Raises:
        SourceError: nothing matches, or a file is not a whole tar, is compressed (:class:`WebDatasetStream` reads it),
            or has a part of a sample twice.
    """

    def __init__(self, *patterns: str | os.PathLike[str]) -> None:
        self.paths = files_of(patterns)
        self._samples = [
            (file, *sample) for file, path in enumerate(self.paths) for sample in _samples(path, _members(path))
        ]

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


class WebDatasetStream:
    """The samples of tar files that are read from front to end, so that they may be compressed (gzip, bzip2, xz).

    The samples are those of :class:`WebDataset`, in the same order.

    Args:
        patterns: as for :class:`WebDataset`.

    Raises:
        SourceError: nothing matches; and, while it is iterated, for a file that is not a whole tar, is compressed in
            another way, or has a part of a sample twice.
    """

    def __init__(self, *patterns: str | os.PathLike[str]) -> None:
        self.paths = files_of(patterns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            if _compression(path) == "zstd":
                raise SourceError(
                    f"{path}: is compressed by zstd, which no sample can be read from: decompress it first"
                )
            for key, parts in _samples(path, _contents(path)):
                yield {"__key__": key, **parts}


def are_compressed(*patterns: str | os.PathLike[str]) -> bool:
    """Whether one of the files is."""
    return any(_compression(path) for path in files_of(patterns))


def _samples(path: str, members: Iterable[tuple[str, Part]]) -> Iterator[tuple[str, dict[str, Part]]]:
    """The key and the parts of each sample of a tar."""
    last = ""
    parts: dict[str, Part] = {}
    for name, content in members:
        match = _KEY.fullmatch(name)
        if match is None:
            continue
        key, part = match[1], match[2].lower()
        if key != last and parts:
            yield last, parts
            parts = {}
        if part in parts:
            raise SourceError(f"{path}: {name}: sample {key!r} has a part {part!r} already")
        last, parts[part] = key, content
    if parts:
        yield last, parts


def _members(path: str) -> Iterator[tuple[str, Place]]:
    """Name, offset and bytes of the files in a tar; not of its own notes, ``__like_this__``."""
    try:
        _refuse_compressed(path)
        whole = os.path.getsize(path)
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > whole:
                    raise SourceError(f"{path}: ends within {member.name} (a download that was cut off?)")
                tar.members = []  # type: ignore[attr-defined]  # it would remember all of them
                if _is_part(member):
                    yield member.name, (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{path}: cannot be read as a tar: {error}") from error


def _contents(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the same files, of a tar that is read from front to end."""
    unpack = _OPENERS.get(_compression(path) or "", open)
    try:
        with unpack(path, "rb") as whole:
            with tarfile.open(fileobj=whole, mode="r|") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]
                    if _is_part(member):
                        file = tar.extractfile(member)
                        assert file is not None
                        yield member.name, file.read()
            while whole.read(_PIECE_BYTES):  # tarfile takes what is cut within a header for the end; these do not
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SourceError(f"{path}: cannot be read as a tar: {error} (a download that was cut off?)") from error


def _is_part(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and not re.fullmatch(r"__[^/]*__", member.name)


def _refuse_compressed(path: str) -> None:
    kind = _compression(path)
    if kind is not None:
        raise SourceError(
            f"{path}: is compressed ({kind}), so no sample can be read by itself: decompress it, or build from "
            "WebDatasetStream, which is read in one pass ('shardcache build --from webdataset' does)"
        )


def _compression(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            start = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    if start[257:262] == b"ustar":  # a tar as it is, whatever its first file is called
        return None
    return next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
