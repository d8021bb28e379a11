"""``verify``: every byte of a cache is read, and every value is decoded, by what readers use.

A shard is checked in the order in which a reader would meet its faults: the file (there, regular, its size, its
structure), the index, then each block's columns: the checksum, the body, each row's value. That is one pass over the
file (:mod:`shardcache.integrity.scan`), in which its SHA-256 is made. Its keys must be those that index and large rows
demand, and no others.

What is found is kept and the check goes on behind it; only a file that is not the one that was sealed, or an index that
cannot be read, gives up the shard. Each problem says which rows cannot be read because of it.
"""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardcache.errors import DamagedError, ManifestError, MissingExtraError, ShardCacheError, StorageError, UsageError
from shardcache.format import block, nested, pages, spec
from shardcache.format import manifest as manifests
from shardcache.format.block import Body, Place
from shardcache.format.columns import NO_VALUE, NOTHING, BlockRows, BodyError, Form
from shardcache.format.files import directory_of
from shardcache.format.leases import ShardFile
from shardcache.format.manifest import ColumnTotals, Manifest
from shardcache.integrity.report import LISTED, UNEXPECTED, Problem, Report, said
from shardcache.integrity.scan import Scan
from shardcache.read.blocks import not_fixed, open_index
from shardcache.read.fields import Schema

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
            column at a time, and a few megabytes of its file.
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
    directory = directory_of(path)
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


class _Total:
    """What the values of a column come to, in the words of :class:`ColumnTotals`."""

    def __init__(self) -> None:
        self.forms: set[int] = set()
        self.raw_bytes = self.stored_bytes = 0
        self.lacks = False  # a block has no value of it

    def add(self, form: int, raw_bytes: int, stored_bytes: int) -> None:
        self.forms.add(form)
        self.raw_bytes += raw_bytes
        self.stored_bytes += stored_bytes

    def add_all(self, other: "_Total") -> None:
        self.forms |= other.forms
        self.raw_bytes += other.raw_bytes
        self.stored_bytes += other.stored_bytes
        self.lacks |= other.lacks

    def fits(self, must: ColumnTotals) -> bool:
        """Whether these are the totals of a manifest, which may be older than the rule for blocks that lack a value."""
        forms = [self.forms, self.forms | {NOTHING}] if self.lacks else [self.forms]
        sizes = self.raw_bytes, self.stored_bytes
        return any(must == ColumnTotals(tuple(sorted(found)), *sizes) for found in forms)


@dataclass
class _Found:
    """What came out of one shard."""

    at: int
    totals: list[_Total]
    values: int = 0
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)


class _Check:
    """The check of one cache; ``shard`` is called from several threads."""

    def __init__(self, directory: Path, manifest: Manifest, progress: Progress | None) -> None:
        self.stopped = False
        self._directory, self._manifest = directory, manifest
        self._cache_id = bytes.fromhex(manifest.cache_id)
        self._permutation = manifest.permutation()
        self._decode = nested.decoder()
        self._skipped = manifest.skipped_rows()
        self._fixed = Schema(manifest).fixed_positions
        self._progress, self._rows_done, self._lock = progress, 0, threading.Lock()

    def shard(self, at: int) -> _Found:
        """All that is wrong with a shard."""
        found = _Found(at, [_Total() for _ in self._manifest.columns])
        size = self._manifest.blocks_per_shard * self._manifest.rows_per_block
        rows = range(at * size, min((at + 1) * size, self._manifest.samples))
        path = self._directory / spec.shard_name(at)
        try:
            with closing(Scan(ShardFile(path, self._manifest.shards[at], f"shard {at:05d}"))) as scan:
                self._file(scan, found)
        except (DamagedError, StorageError) as error:
            self._add(found, error, rows)
        self._advance(found, len(rows) - found.rows)
        return found

    def _file(self, scan: Scan, found: _Found) -> None:
        name, must = f"shard {found.at:05d}", self._manifest.shards[found.at].sha256
        index, columns = open_index(scan.peek(spec.INDEX_KEY), self._manifest, found.at), len(self._manifest.columns)
        for local in range(self._manifest.shard_blocks(found.at)):
            self._block(scan, local, index[local * columns : (local + 1) * columns], found)
        extra, first = scan.unasked()
        if extra:
            what = f"{extra:,} values that no block refers to, the first with key {first.hex()}"
            self._add(found, pages.damaged(name, what), range(0))
        if found.problems or self.stopped:
            return
        try:
            sha256 = scan.sha256()
        except DamagedError as error:
            self._add(found, error, range(0))
            return
        if sha256 != must:
            differs = f"must be {must[:16]}..., is {sha256[:16]}..."
            what = f"the SHA-256 of the file {differs}, though every value in it is sound"
            self._add(found, pages.damaged(name, what), range(0))

    def _block(self, scan: Scan, local: int, forms: bytes, found: _Found) -> None:
        number = found.at * self._manifest.blocks_per_shard + local
        start, count = number * self._manifest.rows_per_block, self._manifest.block_rows(number)
        first, last = np.searchsorted(self._skipped, (start, start + count))
        is_skipped = last - first == count
        for position, form in enumerate(forms):
            if self.stopped:
                return
            if form != Form.FIXED and position in self._fixed and not is_skipped:
                column = self._manifest.columns[position].name
                place = Place(self._cache_id, found.at, block.value_key(local, position), column)
                self._add(found, not_fixed(place, form), range(start, start + count), local, column)
            if form != NO_VALUE:
                self._column(scan, local, position, form, found)
            elif not is_skipped and self._manifest.columns[position].is_leaf:
                found.totals[position].lacks = True
        self._advance(found, count)

    def _column(self, scan: Scan, local: int, position: int, form: int, found: _Found) -> None:
        """One column of one block, with the rows that have keys of their own."""
        number, column = found.at * self._manifest.blocks_per_shard + local, self._manifest.columns[position]
        count, most = self._manifest.block_rows(number), self._manifest.totals[position].raw_bytes

        def place(row: int | None = None) -> Place:
            return Place(self._cache_id, found.at, block.value_key(local, position, row), column.name)

        def fetch(row: int | None = None) -> Body:
            here = place(row)
            value = scan.value(here.key)
            body = block.open_body(value, here, most, borrow=True)
            found.values += 1
            found.totals[position].add(form, len(body), len(value))
            return body

        def add(error: Exception, rows: range) -> None:
            start = number * self._manifest.rows_per_block
            self._add(found, error, range(start + rows.start, start + rows.stop), local, column.name.rstrip("/"))

        try:
            rows = BlockRows(column, form, fetch(), count, self._decode, fetch)
        except DamagedError as error:
            add(error, range(count))
            return
        except (BodyError, ValueError, MemoryError) as error:
            add(block.damaged(place(), f"a body that is {error}"), range(count))
            return
        if rows.form == Form.FIXED:
            return  # of the right length; there any bytes are values
        take = rows.views()
        for row in range(count):
            try:
                take(row)
            except MissingExtraError as error:
                found.notes.add(f"column {column.name!r}: its bytes were checked, but not decoded: {error}")
            except ShardCacheError as error:
                add(error, range(row, row + 1))
            except Warning:
                raise
            except Exception as error:  # what torch, NumPy and Pillow say to numbers that make no sense
                add(block.damaged(place(row), f"not a value ({error})"), range(row, row + 1))

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


def _wrong_totals(manifest: Manifest, found: list[_Found]) -> list[Problem]:
    """The columns of which the manifest says something else than the shards hold, all of them sound."""
    problems = []
    for position, (column, must) in enumerate(zip(manifest.columns, manifest.totals, strict=True)):
        total = _Total()
        for one in found:
            total.add_all(one.totals[position])
        if not total.fits(must):
            was = ColumnTotals(tuple(sorted(total.forms)), total.raw_bytes, total.stored_bytes)
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
