"""``Cache``: an open cache. What is inside, and any sample of it."""

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from torch.utils.data import Dataset

from shardcache.errors import CacheError, UsageError
from shardcache.format import manifest as manifests
from shardcache.format import provenance
from shardcache.format.files import directory_of
from shardcache.format.manifest import Manifest
from shardcache.format.permutation import Integers
from shardcache.format.provenance import SkipNote
from shardcache.format.schema import ABSENT, record_kind
from shardcache.read import views
from shardcache.read.blocks import Blocks, resolve_io
from shardcache.read.fields import Assembler, Field, Schema
from shardcache.read.geometry import Gaps, Geometry, Selection
from shardcache.read.held import HeldBlocks
from shardcache.read.hold import Hold, replaced
from shardcache.read.places import Places


def open(path: str | os.PathLike[str], *, types: Sequence[type] = (), io: str = "auto") -> "Cache":
    """Open a cache for reading. Only the manifest is read now; a shard is verified when it is first used.

    Args:
        path: the cache's directory.
        types: dataclasses and namedtuples; a record in the cache comes back as the one that has its name and fields,
            otherwise as a namedtuple. Nothing is imported because a cache names it.
        io: how values are read. ``"mmap"``: where they lie in a memory map of the shard; a file that is truncated or
            fails *while* it is read ends the process with SIGBUS, as with every memory map. ``"pread"``: copied from
            the file, so that this is a :class:`~shardcache.DamagedError`. ``"auto"``: ``"pread"`` on network file
            systems, on FUSE, and where a :class:`~shardcache.CachedDataset` is read in a worker process; else
            ``"mmap"``.

    Raises:
        UsageError: ``path`` is no path, one of ``types`` is neither a dataclass nor a namedtuple, or ``io`` is none of
            these.
        CacheNotFoundError: there is no cache at ``path``.
        FormatVersionError: it was written by a later version of the format.
        ManifestError: its manifest is damaged.
    """
    return Cache(directory_of(path), _records(types), io=io)


def _records(types: Any) -> tuple[type, ...]:
    given = tuple(types) if isinstance(types, Iterable) else (types,)
    for cls in given:
        if not isinstance(cls, type) or record_kind(cls) is None:
            raise UsageError(f"types must be a list of dataclasses and namedtuples, one was {cls!r}")
    return given


class Cache(Dataset[Any]):
    """A published cache: a map-style dataset of the samples that went in.

    ``cache[i]`` is the sample that ``dataset[i]`` was, whatever the layout; where samples were skipped at the build,
    that ``dataset[cache.source_index(i)]`` was. Negative ``i`` count from the end; ``cache[[3, 1, 2]]`` and
    ``cache[2:8]`` are lists that read each block once. Picklable (by path), and usable by threads and by processes that
    were forked or spawned.
    """

    def __init__(
        self,
        path: Path,
        types: tuple[type, ...] = (),
        *,
        expect: str | None = None,
        selected: Integers | None = None,
        io: str = "auto",
        hold: Hold | None = None,
    ) -> None:
        self.path = path
        self._hold = hold or Hold(path)
        self.types = types
        self._io = io  # as asked: another machine may mount the path in another way
        self._selected = selected  # of a view: the index in the whole cache of each of its samples
        self.manifest: Manifest = manifests.read(path, self._hold.directory)
        if expect is not None and self.manifest.digest != expect:
            raise CacheError(
                f"{path}: another cache is here now (digest {self.manifest.digest[:16]}, was {expect[:16]})"
            )
        self.schema = Schema(self.manifest)
        self.blocks = Blocks(path, self.manifest, types, resolve_io(io, path), self._hold)
        self._permutation = self.manifest.permutation()
        self._places = None if self._permutation is None else Places(self._permutation)
        self._size = self.manifest.kept if selected is None else len(selected)
        self._assembler = Assembler(self.manifest, self.schema.fields, types)
        self._held = HeldBlocks(self.blocks, self._assembler)

    def __reduce__(self) -> Any:
        return _reopen, (self.path, self.types, self.manifest.digest, self._selected, self._io)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        if type(index) is not int:  # as it most often is
            if isinstance(index, slice):
                return self.__getitems__(range(*index.indices(len(self))))
            if isinstance(index, (list, tuple, range)) or getattr(index, "ndim", 0) == 1:
                return self.__getitems__(index)
        number, offset = divmod(self._row(index), self.manifest.rows_per_block)
        return self._held.samples(number)(offset)

    def __getitems__(self, indices: Iterable[Any]) -> list[Any]:
        """The samples at ``indices``, in that order; each block is read once."""
        sources = [self.source_index(index) for index in indices]
        rows = sources if self._permutation is None else self._permutation.inverse(np.array(sources, np.int64)).tolist()
        by_block: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_block.setdefault(row // self.manifest.rows_per_block, []).append(place)
        samples: list[Any] = [None] * len(rows)
        for number, places in by_block.items():
            sample = self._held.samples(number)
            for place in places:
                samples[place] = sample(rows[place] % self.manifest.rows_per_block)
        return samples

    def __iter__(self) -> Iterator[Any]:
        """All samples in source order."""
        return (self[index] for index in range(len(self)))

    def _row(self, index: Any) -> int:
        """Where a sample lies."""
        source = self.source_index(index)
        return source if self._places is None else self._places.row(source)

    def source_index(self, index: Any) -> int:
        """The index in the dataset of the sample ``cache[index]``.

        They differ in a view, and where samples were skipped when the cache was built.
        """
        try:
            found = operator.index(index)
        except TypeError:
            raise UsageError(f"an index must be an int or a list of ints, was {index!r}") from None
        size = self._size
        if not -size <= found < size:
            raise IndexError(f"index {found} is out of range: the cache has {size} samples")
        if found < 0:
            found += size
        if self._selected is not None:
            found = int(self._selected[found])
        if self.manifest.kept < self.manifest.samples:
            found += int(np.searchsorted(self._kept_before, found, side="right"))
        return found

    @cached_property
    def skipped(self) -> Integers:
        """The indices in the dataset of the samples that were skipped when the cache was built, ascending."""
        return self.manifest.skipped_sources()

    def skipped_samples(self) -> list[SkipNote]:
        """What was skipped when the cache was built, and why: ``(index, error, message)`` by index in the dataset.

        The type and text of the error are kept for the first 1,000; they are empty for others. That text is a remark
        beside the cache, which no digest covers.
        """
        why = {one.index: one for one in provenance.skip_notes(self.path)}
        return [why.get(index) or SkipNote(index, "", "") for index in self.skipped.tolist()]

    @cached_property
    def _kept_before(self) -> Integers:
        """How many samples were kept before each that was skipped."""
        return self.skipped - np.arange(len(self.skipped))

    @cached_property
    def digest(self) -> str:
        """Names what is inside: the digest of the manifest; of a view, of that and of its samples."""
        if self._selected is None:
            return self.manifest.digest
        return hashlib.sha256(self.manifest.digest.encode() + self._selected.tobytes()).hexdigest()

    @cached_property
    def geometry(self) -> Geometry:
        """How the rows of this cache or view lie in blocks."""
        m = self.manifest
        if self._selected is None and m.kept < m.samples:
            return Gaps(m.skipped_rows(), m.samples, m.rows_per_block, m.blocks_per_shard)
        if self._selected is None:
            return Geometry(m.samples, m.rows_per_block, m.blocks_per_shard)
        return Selection(np.sort(self.rows_of(np.arange(len(self)))), m.rows_per_block)

    def select(self, indices: Iterable[int]) -> "Cache":
        """A view of the samples at ``indices``, in that order: ``view[k]`` is ``cache[indices[k]]``.

        No bytes are written, blocks that hold none of the samples are never read, and a view is usable wherever a cache
        is. Each sample may come once. ``Meta.index`` still counts in the whole cache.
        """
        return self._view(views.positions(indices, len(self)))

    def split(
        self, fractions: Mapping[str, float], *, seed: int = 0, stratify: str | None = None
    ) -> dict[str, "Cache"]:
        """Disjoint views of random samples, e.g. ``cache.split({"train": 0.9, "val": 0.1})``.

        The same cache, fractions and seed always give the same views. With ``stratify``, the name of a column of
        labels, every label is divided in these proportions; only that column is read.
        """
        parts = views.split(self, fractions, seed, stratify)
        return {name: self._view(part) for name, part in parts.items()}

    def filter(self, columns: Sequence[str | int] | str | int, where: Callable[..., Any]) -> "Cache":
        """A view of the samples for which ``where`` is true, called with the values of ``columns`` in their order.

        Only these columns are read: ``cache.filter(columns=["label"], where=lambda label: label < 5)``.
        """
        found = views.matching(self, columns, where)
        if not len(found):
            raise UsageError("filter: no sample satisfies the condition; a view must hold at least one")
        return self._view(found)

    def _view(self, positions: Integers) -> "Cache":
        selected = positions if self._selected is None else self._selected[positions]
        return self._again(selected, self._io)

    def with_io(self, io: str) -> "Cache":
        """The same cache or view, read in another way: ``"auto"``, ``"mmap"`` or ``"pread"`` (see ``open``)."""
        return self._again(self._selected, io)

    def read_as_worker(self) -> None:
        """Read without maps where nobody asked for them: this process is a worker, and does nothing else.

        Every page of a map that a process ever looked at counts as its memory, up to all of the shards that it has
        open; and a worker looks at most pages once, when to map one costs more than to copy it.
        """
        if self._io == "auto":
            self.blocks.read_by("pread")

    def with_types(self, types: Sequence[type]) -> "Cache":
        """The same cache or view, whose records come back as these classes (see ``open``)."""
        return self._again(self._selected, self._io, tuple(types))

    def _again(self, selected: Integers | None, io: str, types: tuple[type, ...] | None = None) -> "Cache":
        """A view of what this one holds, whatever is at its path by now."""
        digest, types = self.manifest.digest, self.types if types is None else types
        return Cache(self.path, types, expect=digest, selected=selected, io=io, hold=self._hold)

    def read_fields(self, number: int, offsets: Sequence[int], fields: Sequence[Field]) -> list[list[Any]]:
        """The values of some fields at some rows of block ``number``, a list a field."""
        assembler = Assembler(self.manifest, fields, self.types)
        columns = self.blocks.read(number, assembler.positions)
        positions = range(len(self.manifest.columns))
        decoded = (self.blocks.values(columns, number, offset) for offset in offsets)
        rows = [[values.get(position, ABSENT) for position in positions] for values in decoded]
        out = []
        for field in fields:
            found = map(assembler.field_joiner(field), rows)
            out.append([None if value is ABSENT else value for value in found])
        return out

    def rows_of(self, indices: Integers) -> Integers:
        """The rows at which samples lie."""
        if self._selected is not None:
            indices = self._selected[indices]
        if self.manifest.kept < self.manifest.samples:
            indices = indices + np.searchsorted(self._kept_before, indices, side="right")
        return indices if self._permutation is None else self._permutation.inverse(indices)

    def indices_of(self, rows: Integers) -> Integers:
        """The indices of the samples that lie at rows, in the whole cache; nobody skipped them."""
        sources = rows if self._permutation is None else self._permutation.forward(rows)
        if self.manifest.kept == self.manifest.samples:
            return sources
        return sources - np.searchsorted(self.skipped, sources)

    def info(self) -> dict[str, Any]:
        """What is inside, as plain values: for people through ``repr``, for scripts through ``json``."""
        m = self.manifest
        return {
            "path": str(self.path),
            "samples": len(self),
            "skipped": m.samples - m.kept,
            "layout": m.layout,
            "window": None if m.window is UNSET else m.window,
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
            "io": self.blocks.io,
            "provenance": provenance.as_dict(self.path),
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
        samples = f"{len(self):,}" if self._selected is None else f"{len(self):,} of {m.kept:,}"
        samples += f" samples ({m.samples - m.kept:,} skipped)" if m.kept < m.samples else " samples"
        head = f"Cache({str(self.path)!r}: {samples}, {len(m.shards):,} shards, {size / 1e6:,.1f} MB, {m.layout})"
        return "\n".join([head, *(f"  {line}" for line in repr(self.schema).splitlines())])


def _reopen(path: Path, types: tuple[type, ...], digest: str, selected: Integers | None, io: str) -> Cache:
    """The cache of this digest: at its path, or beside it where another one took its place meanwhile."""
    for place in (path, *replaced(path)):
        hold = Hold(place)
        with suppress(CacheError):
            if manifests.read(place, hold.directory).digest == digest:
                return Cache(path, types, expect=digest, selected=selected, io=io, hold=hold)
    return Cache(path, types, expect=digest, selected=selected, io=io)  # which says what is wrong
