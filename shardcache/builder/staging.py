"""The directory beside the cache in which it grows, and the moment at which it becomes the cache.

``DIR.partial`` holds ``plan.json`` (the manifest without shards), finished shards, and a record for each of them. A
build that was interrupted leaves it behind, and the same call continues there. Publishing writes the manifest, removes
what only the build needed, and renames the directory: readers see nothing or everything.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import msgspec
import numpy as np

from shardcache.builder.shards import ShardRecord
from shardcache.builder.tolerance import merged, said
from shardcache.errors import (
    BuildInProgressError,
    BuildMismatchError,
    CacheExistsError,
    SampleError,
    ShardCacheError,
    StorageError,
)
from shardcache.format import manifest, provenance, skipped, spec
from shardcache.format.manifest import ColumnTotals, Manifest, Skipped
from shardcache.format.provenance import Provenance, SkipNote
from shardcache.read.hold import REPLACED, is_held, replaced

_PLAN = "plan.json"
_LOCK = "lock"
_SHOWN = 3


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Every refusal of the file system as a :class:`StorageError` that names the path."""
    try:
        yield
    except ShardCacheError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise StorageError(f"{path}: cannot be written ({reason})") from error


class Staging:
    """Where a build keeps what it has done so far; a context manager that holds the build's lock."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.directory = target.with_name(target.name + ".partial")
        self._lock = filelock.FileLock(self.directory / _LOCK)
        self._published = False

    def __enter__(self) -> "Staging":
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                raise BuildInProgressError(f"{self.target}: another process is building this cache now") from None
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            with storage_errors(self.directory):
                begun = any(self.directory.glob("shard-*.json")) or (self.directory / spec.MANIFEST_NAME).exists()
            if not begun and not self._published:
                shutil.rmtree(self.directory, ignore_errors=True)  # nothing in it is worth continuing
        finally:
            self._lock.release()

    def begin(self, plan: Manifest, skips: bool) -> dict[int, ShardRecord]:
        """Write the plan down, or find it there; returns the shards that are done already.

        Without ``skips`` a shard in which samples were skipped is not done: the build is to raise there.
        """
        with storage_errors(self.directory):
            found, records = self._found()
            if found is not None and not plan.samples:  # a stream, of which the plan does not know how many it has
                found = msgspec.structs.replace(found, samples=0)
            if found is not None and manifest.encode(found) != manifest.encode(plan):
                raise BuildMismatchError(
                    f"{self.directory} holds an interrupted build of something else ({_difference(found, plan)}); "
                    "delete it, or build with what it was begun with"
                )
            records = {number: record for number, record in records.items() if skips or not record.skipped}
            if found is None:
                write(self.directory / _PLAN, manifest.encode(plan))
            for file in self.directory.glob("shard-*.lmdb*"):
                if file.name not in map(spec.shard_name, records):
                    file.unlink()
        return records

    def _found(self) -> tuple[Manifest | None, dict[int, ShardRecord]]:
        """What an interrupted build had planned and done."""
        whole, planned = self.directory / spec.MANIFEST_NAME, self.directory / _PLAN
        try:
            if whole.exists():  # it was interrupted while it was published
                done = msgspec.json.decode(whole.read_bytes(), type=Manifest)
                notes = provenance.skip_notes(self.directory)
                plan = msgspec.structs.replace(done, totals=(), shards=(), skipped=msgspec.UNSET)
                return plan, self._sound(_records(done, notes))
            if not planned.exists():
                return None, {}
            kept = [msgspec.json.decode(file.read_bytes(), type=ShardRecord) for file in self._record_files()]
            return msgspec.json.decode(planned.read_bytes(), type=Manifest), self._sound(kept)
        except msgspec.DecodeError as error:
            raise BuildMismatchError(f"{self.directory} is damaged ({error}); delete it") from None

    def _record_files(self) -> list[Path]:
        return sorted(self.directory.glob("shard-*.json"))

    def _sound(self, records: Iterable[ShardRecord]) -> dict[int, ShardRecord]:
        """The records whose shard is there."""
        sound = {}
        for record in records:
            shard = self.directory / spec.shard_name(record.number)
            if shard.is_file() and shard.stat().st_size == record.seal.file_bytes:
                sound[record.number] = record
        return sound

    def keep(self, record: ShardRecord) -> None:
        """Remember that a shard is finished."""
        path = self.directory / f"shard-{record.number:05d}.json"
        with storage_errors(path):
            write(path, msgspec.json.encode(record))

    def publish(self, plan: Manifest, records: dict[int, ShardRecord], origin: Provenance, replace: bool) -> Manifest:
        """Make the directory the cache."""
        ordered = [records[number] for number in sorted(records)]
        totals = tuple(map(_sum, zip(*(record.totals for record in ordered), strict=True)))
        seals = tuple(record.seal for record in ordered)
        whole = msgspec.structs.replace(plan, totals=totals, shards=seals, skipped=_skipped(plan, ordered))
        notes = merged(note for record in ordered for note in record.notes)
        with storage_errors(self.target):
            (self.directory / spec.SKIPPED_NAME).unlink(missing_ok=True)
            if notes:
                write(self.directory / spec.SKIPPED_NAME, msgspec.json.format(msgspec.json.encode(notes)))
            write(self.directory / spec.PROVENANCE_NAME, msgspec.json.format(msgspec.json.encode(origin)))
            write(self.directory / spec.MANIFEST_NAME, manifest.encode(whole))
            for file in [*self._record_files(), self.directory / _PLAN]:
                file.unlink(missing_ok=True)
            _sync_directory(self.directory)
            self._rename(replace)
            self._published = True
            (self.target / _LOCK).unlink(missing_ok=True)  # only now: until here it keeps others out
            _sync_directory(self.target.parent)
        return msgspec.structs.replace(whole, digest="")

    def _check_target(self, replace: bool) -> bool:
        """Whether there is something to be replaced; what may not be is an error."""
        taken = self.target.exists() and any(self.target.iterdir())
        if taken and not replace:
            raise CacheExistsError(f"{self.target}: something appeared here while the cache was built")
        return taken

    def _rename(self, replace: bool) -> None:
        old = self.target.with_name(f"{self.target.name}{REPLACED}{secrets.token_hex(4)}")
        if not self._check_target(replace):
            if self.target.exists():
                self.target.rmdir()
            self.directory.rename(self.target)
            return
        self.target.rename(old)
        try:
            self.directory.rename(self.target)
        except OSError:
            old.rename(self.target)
            raise
        sweep(self.target)


def progress_of(target: Path) -> tuple[int, int] | None:
    """(finished shards, all shards) of a build that goes on or was interrupted at a path; None where there is none."""
    partial = target.with_name(target.name + ".partial")
    try:
        plan = msgspec.json.decode((partial / _PLAN).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
    return len(list(partial.glob("shard-*.json"))), -(-plan.blocks // plan.blocks_per_shard)


def sweep(target: Path) -> None:
    """Delete what was replaced at a path, but for what somebody still reads."""
    for old in replaced(target):
        if not is_held(old):
            shutil.rmtree(old, ignore_errors=True)


def _records(done: Manifest, notes: tuple[SkipNote, ...]) -> Iterator[ShardRecord]:
    """A whole manifest as records of its shards; the first one carries the totals of all, and the notes."""
    nothing = (ColumnTotals(),) * len(done.totals)
    ends = np.arange(1, len(done.shards)) * (done.blocks_per_shard * done.rows_per_block)
    skipped = np.split(done.skipped_rows(), np.searchsorted(done.skipped_rows(), ends))
    size = done.blocks_per_shard * done.rows_per_block
    for number, (seal, rows) in enumerate(zip(done.shards, skipped, strict=True)):
        count, totals = min(size, done.samples - number * size), nothing if number else done.totals
        yield ShardRecord(number, seal, totals, count, tuple(rows.tolist()), () if number else notes)


def _skipped(plan: Manifest, records: Sequence[ShardRecord]) -> Skipped | msgspec.UnsetType:
    """The rows that hold no sample, as the manifest has them."""
    rows = np.array([row for record in records for row in record.skipped], np.int64)
    if not len(rows):
        return msgspec.UNSET
    if len(rows) == plan.samples:
        raise SampleError(
            f"none of the {len(rows)} samples could be read or stored: {said([n for r in records for n in r.notes])}"
        )
    return Skipped(len(rows), skipped.encode(rows))


def _sum(parts: tuple[ColumnTotals, ...]) -> ColumnTotals:
    forms = sorted({form for part in parts for form in part.forms})
    return ColumnTotals(tuple(forms), sum(part.raw_bytes for part in parts), sum(part.stored_bytes for part in parts))


def _difference(found: Manifest, plan: Manifest) -> str:
    names = [name for name in plan.__struct_fields__ if getattr(found, name) != getattr(plan, name)]
    if names in (["cache_id"], ["cache_id", "digest"]):
        return "the samples differ"
    said = [
        f"{name}: {getattr(found, name)!r} there, {getattr(plan, name)!r} now"
        for name in names
        if name not in ("cache_id", "digest", "structure", "columns")
    ]
    said += ["the columns differ"] if {"structure", "columns"} & set(names) else []
    return "; ".join(said[:_SHOWN])


def write(path: Path, data: bytes) -> None:
    """All of the file or nothing of it, also after a power cut: write beside, fsync, rename."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
