"""Lines of text files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shardcache.builder.sources.patterns import files_of
from shardcache.errors import SourceError, UsageError

_PIECE_BYTES = 4 << 20  # of a file, read at once
_STRIDE = 16  # every so manieth line is in the index, which then takes half a byte a line


class Lines:
    r"""Lines of text files: ``{"text": str}`` each, without the end of the line (``\n`` or ``\r\n``).

    The files are read once to find where lines begin.

    Args:
        patterns: ``*``, ``?``, ``[...]``, ``**`` (any depth), ``{a,b}``, ``{00..17}``.
        lines: how many lines make a sample; the last one of a file may have fewer.
        encoding: of the files; None leaves the text as bytes.

    Raises:
        UsageError: ``lines`` is not 1 or more, or the encoding is unknown or has line ends of its own, like UTF-16.
        SourceError: nothing matches a pattern, or a file cannot be read.
    """

    def __init__(self, *patterns: str | os.PathLike[str], lines: int = 1, encoding: str | None = "utf-8") -> None:
        if type(lines) is not int or lines < 1:
            raise UsageError(f"lines must be 1 or more, was {lines!r}")
        _check_encoding(encoding)
        self.paths, self.lines, self.encoding = files_of(patterns), lines, encoding
        self._stride = lines * -(-_STRIDE // lines)
        indices = [_index(path, self._stride) for path in self.paths]
        self._starts = [starts for starts, _ in indices]
        self._ends = np.cumsum([-(-count // lines) for _, count in indices])  # of the samples of each file

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = int(np.searchsorted(self._ends, index, "right"))
        first = (index - (int(self._ends[file - 1]) if file else 0)) * self.lines  # line of the file
        entry, skip = divmod(first, self._stride)
        start, end = self._starts[file][entry : entry + 2].tolist()
        with open(self.paths[file], "rb") as opened:
            opened.seek(start)
            lines = opened.read(end - start).split(b"\n")
        lines = lines[:-1] if not lines[-1] else lines
        data = b"\n".join(line.removesuffix(b"\r") for line in lines[skip : skip + self.lines])
        return {"text": data if self.encoding is None else self._decoded(data, self.paths[file], first + 1)}

    def _decoded(self, data: bytes, path: str, line: int) -> str:
        assert self.encoding is not None
        try:
            return data.decode(self.encoding)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            raise SourceError(
                f"{path}, line {line}: must be {self.encoding}, has {data[error.start : error.end]!r} "
                "(encoding='latin-1' or another, or encoding=None for bytes)"
            ) from error


def _check_encoding(encoding: str | None) -> None:
    try:
        plain = encoding is None or "\r\n".encode(encoding) == b"\r\n"
    except LookupError:
        raise UsageError(f"encoding {encoding!r}: there is no such encoding") from None
    if not plain:
        raise UsageError(
            f"encoding must be one whose line ends are single bytes, like utf-8 or latin-1; was {encoding!r}"
        )


def _index(path: str, stride: int) -> tuple[Any, int]:
    """Where every ``stride``-th line of a file begins, and its end; the number of its lines."""
    starts, count, position, last = [np.zeros(1, np.int64)], 0, 0, b"\n"
    try:
        with Path(path).open("rb") as file:
            for piece in _pieces(file):
                after = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + (position + 1)
                starts.append(after[(-count - 1) % stride :: stride])  # where a line begins whose number it divides
                count, position, last = count + len(after), position + len(piece), piece[-1:]
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    count += last != b"\n"  # the last line may have no end
    kept = np.concatenate(starts)
    return np.append(kept[kept < position], position), count


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(_PIECE_BYTES), b"")
