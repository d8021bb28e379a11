"""``Cache``: an open cache. What is inside, and any sample of it."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from shardcache.errors import CacheError, UsageError
from shardcache.format import manifest as manifests
from shardcache.format.columns import BlockRows
from shardcache.format.manifest import Manifest
from shardcache.read.blocks import Blocks
from shardcache.read.fields import Assembler, Schema


def open(path: str | os.PathLike[str], *, types: Sequence[type] = ()) -> "Cache":
    """Open a cache for reading. Only the manifest is read now; a shard is verified when it is first used.

    Args:
        path: the cache's directory.
        types: dataclasses and namedtuples; a record in the cache comes back as the one that has its name and fields,
            otherwise as a namedtuple. Nothing is imported because a cache names it.

    Raises:
        CacheNotFoundError: there is no cache at ``path``.
        FormatVersionError: it was written by a later version of the format.
        ManifestError: its manifest is damaged.
    """
    return Cache(Path(path).absolute(), tuple(types))


class Cache(Dataset[Any]):
    """A published cache: a map-style dataset of the samples that went in.

    ``cache[i]`` is the sample that ``dataset[i]`` was, whatever the layout; negative ``i`` count from the end;
    ``cache[[3, 1, 2]]`` and ``cache[2:8]`` are lists that read each block once. Picklable (by path), and usable by
    threads and by processes that were forked or spawned.
    """

    def __init__(self, path: Path, types: tuple[type, ...] = (), *, expect: str | None = None) -> None:
        self.path = path
        self.types = types
        self.manifest: Manifest = manifests.read(path)
        if expect is not None and self.manifest.digest != expect:
            raise CacheError(
                f"{path}: another cache is here now (digest {self.manifest.digest[:16]}, was {expect[:16]})"
            )
        self.schema = Schema(self.manifest)
        self.blocks = Blocks(path, self.manifest, types)
        self._permutation = self.manifest.permutation()
        self._assembler = Assembler(self.manifest, self.schema.fields, types)
        self._last = threading.local()

    def __reduce__(self) -> Any:
        return _reopen, (self.path, self.types, self.manifest.digest)

    def __len__(self) -> int:
        return self.manifest.samples

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        if isinstance(index, (list, tuple, range)) or getattr(index, "ndim", 0) == 1:
            return self.__getitems__(index)
        number, offset = divmod(self._row(index), self.manifest.rows_per_block)
        last = getattr(self._last, "block", None)
        if last is None or last[0] != number:
            last = self._last.block = (number, self.blocks.read(number, self._assembler.positions))
        return self._sample(number, last[1], offset)

    def __getitems__(self, indices: Iterable[Any]) -> list[Any]:
        """The samples at ``indices``, in that order; each block is read once."""
        rows = [self._row(index) for index in indices]
        by_block: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_block.setdefault(row // self.manifest.rows_per_block, []).append(place)
        samples: list[Any] = [None] * len(rows)
        for number, places in by_block.items():
            columns = self.blocks.read(number, self._assembler.positions)
            for place in places:
                samples[place] = self._sample(number, columns, rows[place] % self.manifest.rows_per_block)
        return samples

    def __iter__(self) -> Iterator[Any]:
        """All samples in source order."""
        return (self[index] for index in range(len(self)))

    def _row(self, index: Any) -> int:
        """Where a source index lies."""
        try:
            source: int = index.__index__()
        except (AttributeError, TypeError):
            raise UsageError(f"an index must be an int or a list of ints, was {index!r}") from None
        if not -len(self) <= source < len(self):
            raise IndexError(f"index {source} is out of range: the cache has {len(self)} samples")
        source %= len(self)
        return source if self._permutation is None else self._permutation.inverse(source)

    def _sample(self, number: int, columns: dict[int, BlockRows], offset: int) -> Any:
        values = {}
        for position, rows in columns.items():
            try:
                values[position] = rows.value(offset)
            except ValueError as error:
                raise self.blocks.value_error(number, position, offset, error) from None
        return self._assembler.join(values)

    def rows_of(self, indices: "np.ndarray[Any, np.dtype[np.int64]]") -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The rows at which source indices lie."""
        return indices if self._permutation is None else self._permutation.inverse(indices)

    def source_indices(self, rows: "np.ndarray[Any, np.dtype[np.int64]]") -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The source indices of rows: the inverse of :meth:`rows_of`."""
        return rows if self._permutation is None else self._permutation.forward(rows)

    def info(self) -> dict[str, Any]:
        """What is inside, as plain values: for people through ``repr``, for scripts through ``json``."""
        m = self.manifest
        return {
            "path": str(self.path),
            "samples": m.samples,
            "layout": m.layout,
            "seed": m.seed,
            "shards": len(m.shards),
            "blocks": m.blocks,
            "rows_per_block": m.rows_per_block,
            "raw_bytes": sum(totals.raw_bytes for totals in m.totals),
            "stored_bytes": sum(totals.stored_bytes for totals in m.totals),
            "file_bytes": sum(seal.file_bytes for seal in m.shards),
            "format_version": m.version,
            "digest": m.digest,
            "written_by": m.written_by,
            "columns": [
                {
                    "name": field.name,
                    "type": str(field),
                    "batch": field.batch,
                    "codec": field.codec,
                    "why": field.why,
                    "raw_bytes": field.raw_bytes,
                    "stored_bytes": field.stored_bytes,
                }
                for field in self.schema
            ],
        }

    def __repr__(self) -> str:
        m = self.manifest
        size = sum(seal.file_bytes for seal in m.shards)
        head = f"Cache({str(self.path)!r}: {m.samples:,} samples, {len(m.shards):,} shards, {size / 1e6:,.1f} MB, {m.layout})"
        return "\n".join([head, *(f"  {line}" for line in repr(self.schema).splitlines())])


def _reopen(path: Path, types: tuple[type, ...], digest: str) -> Cache:
    return Cache(path, types, expect=digest)
