"""The directory beside the cache in which it grows, and the moment at which it becomes the cache.

``DIR.partial`` holds ``plan.json`` (the manifest without shards), finished shards, and a record for each of them. A
build that was interrupted leaves it behind, and the same call continues there. Publishing writes the manifest, removes
what only the build needed, and renames the directory: readers see nothing or everything.

It is one whole build's alone, or that of several parts, which run at the same time and know each other by their locks
only. A part adds its own shards, and never publishes nor deletes what others may need.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shardcache.builder.differences import difference
from shardcache.builder.locks import LOCK, Shared, Whole
from shardcache.builder.parts import Part
from shardcache.builder.shards import ShardRecord
from shardcache.builder.swap import discard, put_in_place
from shardcache.builder.tolerance import merged, said
from shardcache.errors import BuildMismatchError, CacheExistsError, ManifestError, SampleError
from shardcache.format import manifest, provenance, skipped, spec
from shardcache.format.files import NotAFileError, read_regular, storage_errors, sync_directory, write_whole
from shardcache.format.manifest import ColumnTotals, Manifest, Skipped
from shardcache.format.provenance import Provenance, SkipNote

ATTEMPTS = "attempts-"  # how a directory begins in which shards are being built, by processes that are not ours

_PLAN = "plan.json"
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_OURS = ("shard-", "part-", ATTEMPTS, _PLAN, spec.MANIFEST_NAME, spec.PROVENANCE_NAME)


class Staging:
    """Where a build keeps what it has done so far; a context manager that holds the build's lock."""

    def __init__(self, target: Path, part: Part | None = None) -> None:
        self.target = target
        self.directory = target.with_name(target.name + ".partial")
        self._part = part
        self._lock: Whole | Shared
        self._published = False

    def __enter__(self) -> "Staging":
        with storage_errors(self.directory):
            if self.directory.is_symlink():  # a build deletes what it does not know
                raise NotADirectoryError(errno.ENOTDIR, "must be a directory, is a link")
            self._refuse_strangers()
            part = self._part
            self._lock = (
                Whole(self.directory, self.target) if part is None else Shared(self.directory, self.target, part)
            )
        return self

    def _refuse_strangers(self) -> None:
        """A build that fails deletes this directory, and one that succeeds publishes all of it."""
        for file in self.directory.iterdir() if self.directory.is_dir() else ():
            if not file.name.startswith((*_OURS, spec.SKIPPED_NAME, ".")) and file.name != LOCK:
                raise CacheExistsError(
                    f"{self.directory}: something else is here already ({file.name!r}), where the cache would grow; "
                    "move it away, or choose another path"
                )

    def __exit__(self, *exc: object) -> None:
        try:
            with storage_errors(self.directory):
                begun = any(self.directory.glob("shard-*.json")) or (self.directory / spec.MANIFEST_NAME).exists()
            if not begun and not self._published and self._lock.alone():
                discard(self.directory)  # nothing in it is worth continuing
        finally:
            self._lock.release()

    def begin(self, plan: Manifest, skips: bool) -> dict[int, ShardRecord]:
        """Write the plan down, or find it there; returns the shards that are done already.

        Without ``skips`` a shard in which samples were skipped is not done: the build is to raise there.
        """
        with storage_errors(self.directory):
            found, records = self.found()
            if found is None:
                found = self._written(plan)
            if not plan.samples:  # a stream, of which the plan does not know how many it has
                found = msgspec.structs.replace(found, samples=0)
            if manifest.encode(found) != manifest.encode(plan):
                raise BuildMismatchError(
                    f"{self.directory} holds an interrupted build of something else ({difference(found, plan)}); "
                    "delete it, or build with what it was begun with"
                )
            most = found.shard_count if found.samples else spec.MAX_SHARDS  # of a stream nobody knows yet
            if not all(0 <= k < most and len(r.totals) == len(found.columns) for k, r in records.items()):
                raise BuildMismatchError(f"{self.directory} is damaged (a record of no shard of the plan); delete it")
            records = {number: record for number, record in records.items() if skips or not record.skipped}
            if self._part is None:
                self._tidy({LOCK, _PLAN, spec.SKIPPED_NAME, spec.MANIFEST_NAME}, records)
        return records

    def _written(self, plan: Manifest) -> Manifest:
        """The plan that is there now: ours, unless another part was first."""
        if self._part is None:
            write_whole(self.directory / _PLAN, manifest.encode(plan))
            return plan
        beside = self.directory / f"{_PLAN}.{self._part.name}"
        write_whole(beside, manifest.encode(plan))
        try:
            os.link(beside, self.directory / _PLAN)
        except FileExistsError:
            return _decoded(_read(self.directory / _PLAN), self.directory)
        finally:
            beside.unlink()
        sync_directory(self.directory)
        return plan

    def _tidy(self, kept: set[str], records: Iterable[int]) -> None:
        """Remove what builds have left here that nobody needs any more, and nothing that is not of a build."""
        shards = [spec.shard_name(number) for number in records]
        kept = kept.union(shards, (Path(name).with_suffix(".json").name for name in shards))
        for file in self.directory.iterdir():
            if not file.name.startswith(_OURS) or file.name in kept:
                continue
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()

    def found(self) -> tuple[Manifest | None, dict[int, ShardRecord]]:
        """What was planned and done before."""
        whole, planned = self.directory / spec.MANIFEST_NAME, self.directory / _PLAN
        try:
            if whole.exists():  # it was interrupted while it was published
                done = _decoded(_read(whole), self.directory)
                manifest.decode(_read(whole), whole.name)
                notes = provenance.skip_notes(self.directory)
                plan = msgspec.structs.replace(done, totals=(), shards=(), skipped=msgspec.UNSET)
                return plan, self._sound(_records(done, notes))
            if not planned.exists():
                return None, {}
            kept = [msgspec.json.decode(_read(file), type=ShardRecord) for file in self._record_files()]
            return _decoded(_read(planned), self.directory), self._sound(kept)
        except (*_UNREADABLE, NotAFileError, ManifestError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise BuildMismatchError(f"{self.directory} is damaged ({why}); delete it") from None

    def _record_files(self) -> list[Path]:
        return sorted(self.directory.glob("shard-*.json"))

    def _sound(self, records: Iterable[ShardRecord]) -> dict[int, ShardRecord]:
        """The records whose shard is there."""
        sound = {}
        for record in records:
            shard = self.directory / spec.shard_name(record.number)
            if not shard.is_symlink() and shard.is_file() and shard.stat().st_size == record.seal.file_bytes:
                sound[record.number] = record
        return sound

    def note(self, origin: Provenance) -> None:
        """Leave word of where a part comes from, for who publishes the whole."""
        assert self._part is not None
        with storage_errors(self.directory):
            write_whole(self.directory / f"{self._part.name}.json", msgspec.json.encode(origin))

    def forget(self, number: int) -> None:
        """A shard is not what its record says."""
        path = record_path(self.directory, number)
        with storage_errors(path):
            path.unlink(missing_ok=True)

    def publish(
        self, plan: Manifest, records: dict[int, ShardRecord], origin: Provenance | None, replace: bool
    ) -> None:
        """Make the directory the cache."""
        ordered = [records[number] for number in sorted(records)]
        totals = tuple(map(_sum, zip(*(record.totals for record in ordered), strict=True)))
        seals = tuple(record.seal for record in ordered)
        whole = msgspec.structs.replace(plan, totals=totals, shards=seals, skipped=_skipped(plan, ordered))
        notes = merged(note for record in ordered for note in record.notes)
        with storage_errors(self.target):
            (self.directory / spec.SKIPPED_NAME).unlink(missing_ok=True)
            if notes:
                write_whole(self.directory / spec.SKIPPED_NAME, msgspec.json.format(msgspec.json.encode(notes)))
            if origin is not None:
                write_whole(self.directory / spec.PROVENANCE_NAME, msgspec.json.format(msgspec.json.encode(origin)))
            write_whole(self.directory / spec.MANIFEST_NAME, self._checked(manifest.encode(whole)))
            for file in self._record_files():
                file.unlink()
            self._tidy({LOCK, spec.PROVENANCE_NAME, spec.SKIPPED_NAME, spec.MANIFEST_NAME}, records)
            sync_directory(self.directory)
            put_in_place(self.directory, self.target, replace)
            self._published = True
            (self.target / LOCK).unlink(missing_ok=True)  # only now: until here it keeps others out
            sync_directory(self.target.parent)

    def _checked(self, data: bytes) -> bytes:
        """A manifest, unless readers would refuse it for what was found of an interrupted build."""
        try:
            manifest.decode(data, spec.MANIFEST_NAME)
        except ManifestError as error:
            raise BuildMismatchError(f"{self.directory} is damaged ({error}); delete it") from None
        return data


def record_path(directory: Path, number: int) -> Path:
    """Where the record of a finished shard lies until the cache is published."""
    return (directory / spec.shard_name(number)).with_suffix(".json")


def progress_of(target: Path) -> tuple[int, int] | None:
    """(finished shards, all shards) of a build that goes on or was interrupted at a path; None where there is none."""
    partial = target.with_name(target.name + ".partial")
    try:
        shards = msgspec.json.decode(_read(partial / _PLAN), type=Manifest).shard_count
    except (OSError, ZeroDivisionError, *_UNREADABLE):
        return None
    return len(list(partial.glob("shard-*.json"))), shards


def _read(path: Path) -> bytes:
    return read_regular(path, spec.MAX_MANIFEST_BYTES)


class _Head(msgspec.Struct):
    """What a plan of any version has."""

    version: int


def _decoded(data: bytes, where: Path) -> Manifest:
    """A plan, or a manifest; of another version of the format at least its version."""
    version = msgspec.json.decode(data, type=_Head).version
    if version != spec.FORMAT_VERSION:
        raise BuildMismatchError(
            f"{where} holds an interrupted build of format version {version}, now it is {spec.FORMAT_VERSION}; delete "
            "it, or continue with the version of shardcache that began it"
        )
    return msgspec.json.decode(data, type=Manifest)


def _records(done: Manifest, notes: tuple[SkipNote, ...]) -> Iterator[ShardRecord]:
    """A whole manifest as records of its shards; the first one carries the totals of all, and the notes."""
    nothing = (ColumnTotals(),) * len(done.totals)
    ends = np.arange(1, len(done.shards)) * (done.blocks_per_shard * done.rows_per_block)
    skipped = np.split(done.skipped_rows(), np.searchsorted(done.skipped_rows(), ends))
    for number, (seal, rows) in enumerate(zip(done.shards, skipped, strict=True)):
        totals = nothing if number else done.totals
        yield ShardRecord(number, seal, totals, done.shard_rows(number), tuple(rows.tolist()), () if number else notes)


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
