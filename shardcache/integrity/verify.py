"""``verify``: every byte of a cache is read, and every value is decoded, through the door that readers use.

A shard is checked in the order in which a reader would meet its faults: the file (there, regular, its size, its
structure), its SHA-256, the index, then each block's columns: the checksum, the body, each row's value. Alongside goes
the list of the keys that the shard has, which must be those that index and large rows demand, and no others. Both
ascend, so they are compared in one pass, and nothing grows with the shard.

What is found is kept and the check goes on behind it; only a file that LMDB must not see, or an index that cannot be
read, gives up the shard. Each problem says which rows cannot be read because of it.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardcache.errors import DamagedError, ManifestError, MissingExtraError, ShardCacheError, StorageError, UsageError
from shardcache.format import block, leases, nested, pages, spec
from shardcache.format import manifest as manifests
from shardcache.format.block import Body, Place
from shardcache.format.columns import NO_VALUE, BlockRows, BodyError, Form
from shardcache.format.files import let_go
from shardcache.format.leases import ShardReader
from shardcache.format.manifest import ColumnTotals, Manifest
from shardcache.integrity.report import LISTED, UNEXPECTED, Problem, Report, said
from shardcache.read.blocks import resolve_io

_MAX_THREADS = 4  # each holds a decoded block, which is large where a single sample is

Progress = Callable[[int, int], None]


def verify(
    path: str | os.PathLike[str],
    *,
    expect: str | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read every byte of a cache and decode every value; report all that is wrong.

    Args:
        path: the cache's directory.
        expect: the digest that the cache must have (``shardcache info --digest``), e.g. one that was published with it:
            the manifest's, which covers every shard. With another one nothing more is checked.
        num_workers: threads, each at one shard; by default one a core, at most 4. A thread holds one block of one
            column at a time.
        progress: called with (rows checked, rows in all) from the threads, one at a time.

    Returns:
        A :class:`Report`, which is true where the cache is sound. Damage never raises.

    Raises:
        CacheNotFoundError: there is no cache at ``path``.
        FormatVersionError: it was written by a later version of the format.
        UsageError: ``num_workers`` is not a number of threads, or ``expect`` is no digest.
    """
    expected = None if expect is None else expect.strip().lower()
    if expected is not None and not re.fullmatch("[0-9a-f]{64}", expected):
        raise UsageError(f"expect must be a digest of 64 hex digits, was {expect!r}")
    if num_workers is not None and (type(num_workers) is not int or num_workers < 0):
        raise UsageError(f"num_workers must be 0 or more, was {num_workers!r}")
    directory = Path(path).absolute()
    try:
        manifest = manifests.read(directory)
    except ManifestError as error:
        return Report(directory, (Problem(spec.MANIFEST_NAME, type(error).__name__, said(error), None),))
    if expected not in (None, manifest.digest):
        what = f"the digest of the cache must be {expected}, is {manifest.digest}"
        return Report(directory, (Problem(spec.MANIFEST_NAME, UNEXPECTED, what, None),), manifest=manifest)
    threads = min(os.cpu_count() or 1, _MAX_THREADS) if num_workers is None else max(1, num_workers)
    check = _Check(directory, manifest, progress)
    with ThreadPoolExecutor(threads, "verify") as pool:
        try:
            found = list(pool.map(check.shard, range(len(manifest.shards))))
        except BaseException:
            check.stopped = True
            raise
    problems = [problem for one in found for problem in one.problems] or _wrong_totals(manifest, found)
    notes = sorted({note for one in found for note in one.notes}) + _extra_files(directory, manifest)
    return Report(directory, tuple(problems), tuple(notes), manifest, sum(one.values for one in found))


@dataclass
class _Found:
    """What came out of one shard."""

    at: int
    totals: list[ColumnTotals]
    values: int = 0
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)

    def count(self, position: int, form: int, body: Body, value: memoryview) -> None:
        self.values += 1
        self.totals[position] = _sum([self.totals[position], ColumnTotals((form,), len(body), len(value))])


class _Keys:
    """The keys of a shard, which are asked for in their order; those that nobody asks for are ``extra``."""

    def __init__(self, keys: Iterator[bytes]) -> None:
        self._keys, self._next = keys, next(keys, None)
        self.extra, self.first_extra = 0, b""

    def expect(self, key: bytes) -> None:
        """Pass ``key``; that it is missing is found by who reads it."""
        while self._next is not None and self._next <= key:
            if self._next < key:
                self.extra, self.first_extra = self.extra + 1, self.first_extra or self._next
            self._next = next(self._keys, None)


class _Check:
    """The check of one cache; ``shard`` is called from several threads."""

    def __init__(self, directory: Path, manifest: Manifest, progress: Progress | None) -> None:
        self.stopped = False
        self._directory, self._manifest, self._io = directory, manifest, resolve_io("auto", directory)
        self._cache_id = bytes.fromhex(manifest.cache_id)
        self._permutation = manifest.permutation()
        self._decode = nested.decoder()
        self._progress, self._rows_done, self._lock = progress, 0, threading.Lock()

    def shard(self, at: int) -> _Found:
        """All that is wrong with a shard."""
        found = _Found(at, [ColumnTotals()] * len(self._manifest.columns))
        size = self._manifest.blocks_per_shard * self._manifest.rows_per_block
        rows = range(at * size, min((at + 1) * size, self._manifest.samples))
        try:
            with self._lease(at), _descriptor(self._path(at)) as fd:
                self._file(fd, found)
        except (DamagedError, StorageError) as error:
            self._add(found, error, rows)
        self._advance(found, len(rows) - found.rows)
        return found

    def _file(self, fd: int, found: _Found) -> None:
        name, seal = f"shard {found.at:05d}", self._manifest.shards[found.at]
        sha256 = pages.seal(fd, name).sha256
        keys = _Keys(key for key, _, _ in pages.values(fd, seal.file_bytes, name))
        for local, forms in enumerate(self._index(found.at)):
            for position, form in enumerate(forms):
                if form != NO_VALUE and not self.stopped:
                    self._column(local, position, form, keys, found)
            self._advance(found, self._manifest.block_rows(found.at * self._manifest.blocks_per_shard + local))
        keys.expect(spec.INDEX_KEY)
        if keys.extra:
            what = f"{keys.extra:,} values that no block refers to, the first with key {keys.first_extra.hex()}"
            self._add(found, pages.damaged(name, what), range(0))
        if sha256 != seal.sha256 and not found.problems:
            differs = f"must be {seal.sha256[:16]}..., is {sha256[:16]}..."
            what = f"the SHA-256 of the file {differs}, though every value in it is sound"
            self._add(found, pages.damaged(name, what), range(0))

    def _index(self, at: int) -> list[list[int]]:
        """The form of each column of each block."""
        place = Place(self._cache_id, at, spec.INDEX_KEY)
        with self._lease(at) as reader:
            body = block.open_body(reader.get(place.key), place)
        blocks, columns = self._manifest.shard_blocks(at), len(self._manifest.columns)
        if len(body) != blocks * columns:
            raise block.damaged(place, f"{len(body)} entries where the shard has {blocks} blocks of {columns} columns")
        forms: list[list[int]] = body.reshape(blocks, columns).tolist()
        return forms

    def _column(self, local: int, position: int, form: int, keys: _Keys, found: _Found) -> None:
        """One column of one block, with the rows that have keys of their own."""
        number, column = found.at * self._manifest.blocks_per_shard + local, self._manifest.columns[position]
        count, start = self._manifest.block_rows(number), number * self._manifest.rows_per_block

        def place(row: int | None = None) -> Place:
            return Place(self._cache_id, found.at, block.value_key(local, position, row), column.name)

        def fetch(row: int | None = None) -> Body:
            keys.expect(place(row).key)
            with self._lease(found.at) as reader:
                value = reader.get(place(row).key)
                body = block.open_body(value, place(row), borrow=True)
                found.count(position, form, body, value)
            return body

        def add(error: Exception, rows: range) -> None:
            self._add(found, error, range(start + rows.start, start + rows.stop), local, column.name.rstrip("/"))

        try:
            rows = BlockRows(column, form, fetch(), count, self._decode, fetch)
        except DamagedError as error:
            add(error, range(count))
            return
        except (BodyError, ValueError, MemoryError) as error:
            add(block.damaged(place(), f"a body that is {error}"), range(count))
            return
        if form == Form.FIXED:
            return  # of the right length; there any bytes are values
        for row in range(count):
            try:
                rows.value(row)
            except MissingExtraError as error:
                found.notes.add(f"column {column.name!r}: its bytes were checked, but not decoded: {error}")
            except ShardCacheError as error:
                add(error, range(row, row + 1))
            except (ValueError, MemoryError) as error:
                add(block.damaged(place(row), f"not a value ({error})"), range(row, row + 1))

    def _lease(self, at: int) -> ShardReader:
        return leases.lease(self._path(at), self._manifest.shards[at], f"shard {at:05d}", self._io)

    def _path(self, at: int) -> Path:
        return self._directory / spec.shard_name(at)

    def _add(
        self, found: _Found, error: Exception, rows: range, local: int | None = None, column: str | None = None
    ) -> None:
        first = np.array(rows[:LISTED], np.int64)
        sources = tuple((first if self._permutation is None else self._permutation.forward(first)).tolist())
        file, kind = spec.shard_name(found.at), type(error).__name__
        found.problems.append(Problem(file, kind, said(error), rows, local, column, sources))

    def _advance(self, found: _Found, rows: int) -> None:
        found.rows += rows
        with self._lock:
            self._rows_done += rows
            if self._progress is not None and rows:
                self._progress(self._rows_done, self._manifest.samples)


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    """A file that was found to be a regular one, opened so that no other kind could make this wait."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        yield fd
    finally:
        let_go(fd)


def _sum(parts: Sequence[ColumnTotals]) -> ColumnTotals:
    forms = {form for part in parts for form in part.forms}
    raw_bytes, stored_bytes = sum(part.raw_bytes for part in parts), sum(part.stored_bytes for part in parts)
    return ColumnTotals(tuple(sorted(forms)), raw_bytes, stored_bytes)


def _wrong_totals(manifest: Manifest, found: list[_Found]) -> list[Problem]:
    """The columns of which the manifest says something else than the shards hold, all of them sound."""
    problems = []
    for position, (column, must) in enumerate(zip(manifest.columns, manifest.totals, strict=True)):
        was = _sum([one.totals[position] for one in found])
        if was != must:
            what = f"column {column.name!r} must have {must}, the shards hold {was}"
            problems.append(Problem(spec.MANIFEST_NAME, ManifestError.__name__, what, range(0), column=column.name))
    return problems


def _extra_files(directory: Path, manifest: Manifest) -> list[str]:
    """Remarks on what lies in the directory and is not of the cache."""
    known = {
        spec.MANIFEST_NAME,
        spec.PROVENANCE_NAME,
        spec.SKIPPED_NAME,
        *map(spec.shard_name, range(len(manifest.shards))),
    }
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        return [f"{directory}: what else is in it cannot be listed ({error.strerror or error})"]
    return [f"{name}: is not a part of the cache" for name in names if name not in known]
