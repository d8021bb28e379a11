"""``repair``: the damaged shards of a cache, built again from the dataset, and put back where they are the same.

A build gives the same bytes for the same samples, versions and page size, and the manifest has the SHA-256 of every
shard. So a shard that was built again is either exactly what was there, or it is not put back: the manifest and the
other shards go on to say what they said, and readers see the damaged file or the sound one. What cannot be restored in
this way becomes a new cache beside.

Shards are built in ``DIR.repair`` and renamed one by one. A repair that is killed leaves that directory; the next one
verifies again and does what is left.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from shardcache.builder.build import build
from shardcache.builder.engine import Engine
from shardcache.builder.progress import Progress, listener
from shardcache.builder.source import Recipe, Source
from shardcache.builder.stream import Stream
from shardcache.builder.swap import discard
from shardcache.builder.work import Work
from shardcache.errors import BuildInProgressError, ManifestError, StorageError
from shardcache.format import compression, shard, spec
from shardcache.format.files import directory_of, let_go, storage_errors
from shardcache.format.manifest import Manifest
from shardcache.integrity.report import Report
from shardcache.integrity.verify import verify


@dataclass(frozen=True)
class Repair:
    """What :func:`repair` did. True where the cache is sound now.

    ``report`` is what was wrong before. ``restored`` are the numbers of the shards that were put back; ``differing``
    those that were not, since they came out different, or would as the dataset has another length. ``reasons`` says
    why, and ``beside`` is then the new cache.
    """

    path: Path
    report: Report
    restored: tuple[int, ...] = ()
    differing: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    beside: Path | None = None

    def __bool__(self) -> bool:
        return self.beside is None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``json``."""
        return {
            "path": str(self.path),
            "ok": bool(self),
            "problems": [problem.as_dict() for problem in self.report.problems],
            "restored": list(self.restored),
            "differing": list(self.differing),
            "reasons": list(self.reasons),
            "beside": None if self.beside is None else str(self.beside),
        }


def repair(
    path: str | os.PathLike[str],
    dataset: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> Repair:
    """Build the damaged shards of a cache again from its dataset; readers may go on meanwhile.

    A shard is put back only when it is, to the bit, what the manifest says. Where it is not (another version of zstd or
    lmdb, a dataset that has changed), the cache is left as it is and a new one is built beside, of the same layout; its
    codecs and blocks are the defaults.

    Args:
        path: the cache's directory.
        dataset: what the cache was built from, as for :func:`~shardcache.build`.
        kwargs: arguments for a callable that makes the dataset.
        out: where a new cache goes, should it take one; default: ``path + ".repaired"``.
        num_workers: processes that build; 0: this one.
        progress: show a bar where standard error is a terminal.

    Returns:
        A :class:`Repair`, which is true where the cache is sound now.

    Raises:
        ManifestError: the manifest is damaged. Without it no shard can be told from a wrong one: build the cache anew.
        BuildInProgressError: another process repairs this cache.
        SourceError: the dataset cannot be read.
        StorageError: the disk is full, or the cache may not be written.
        CacheExistsError: a new cache is needed, and something is at ``out``.
    """
    directory = directory_of(path).resolve()
    recipe = Recipe(dataset, kwargs)
    report = verify(directory)
    if report or report.manifest is None:
        _sweep(directory)
        return Repair(directory, _with_manifest(report))
    # The cache by descriptor: one that another process puts in its place meanwhile is not touched.
    with _workshop(directory) as workshop, _opened(directory) as cache:
        report = _with_manifest(verify(directory))  # somebody may have repaired it just now
        damaged, manifest = _damaged_shards(report), report.manifest
        assert manifest is not None
        source = recipe.source()
        restored: list[int] = []
        if isinstance(source, Stream) or source.samples == manifest.samples:
            work = Work(recipe, manifest, workshop)
            for number in _rebuilt(Engine(num_workers), work, source, damaged, progress):
                _put_back(workshop, spec.shard_name(number), cache)
                restored.append(number)
        differing = [number for number in damaged if number not in restored]
        is_sound = bool(damaged) and not differing
        if report or is_sound:
            return Repair(directory, report, tuple(sorted(restored)))
    beside = directory.with_name(directory.name + ".repaired") if out is None else directory_of(out)
    build(
        dataset,
        beside,
        kwargs=kwargs,
        layout=manifest.layout,
        seed=manifest.seed,
        shuffle_window=manifest.window if isinstance(manifest.window, int) else None,
        on_error="skip" if manifest.kept < manifest.samples else "raise",
        num_workers=num_workers,
        progress=progress,
    )
    reasons = tuple(_reasons(manifest, source.samples))
    return Repair(directory, report, tuple(sorted(restored)), tuple(differing), reasons, beside.absolute())


def _with_manifest(report: Report) -> Report:
    if report.manifest is None:
        problem = report.problems[0]
        raise ManifestError(
            f"{problem.what}; without its manifest no shard can be told from a wrong one, so nothing can be repaired: "
            "build the cache anew ('shardcache build --if-exists replace'), or copy the manifest of a sound copy"
        )
    return report


def _damaged_shards(report: Report) -> list[int]:
    assert report.manifest is not None
    numbers = {spec.shard_name(number): number for number in range(len(report.manifest.shards))}
    return sorted({numbers[problem.file] for problem in report.problems if problem.file in numbers})


@contextmanager
def _workshop(directory: Path) -> Iterator[Path]:
    """The directory beside a cache in which one process at a time builds shards for it."""
    workshop = directory.with_name(directory.name + ".repair")
    with storage_errors(workshop):
        workshop.mkdir(exist_ok=True)
        lock = filelock.FileLock(workshop / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BuildInProgressError(f"{directory}: another process is repairing this cache now") from None
    try:
        yield workshop
    finally:
        discard(workshop)  # the lock last would let another one in between
        with suppress(OSError):
            lock.release()


def _sweep(directory: Path) -> None:
    """Remove what a repair has left that was killed when all was done."""
    if os.path.isdir(directory.with_name(directory.name + ".repair")):
        with suppress(BuildInProgressError, StorageError), _workshop(directory):
            pass


def _rebuilt(engine: Engine, work: Work, source: Source, damaged: Sequence[int], progress: bool) -> Iterator[int]:
    """The damaged shards that came out as they were, each as soon as it lies in the workshop."""
    rows = sum(map(work.plan.shard_rows, damaged))
    with storage_errors(work.directory), Progress(rows, listener(progress)) as report:
        for record in engine.build(work, source, damaged, report):
            if record.seal == work.plan.shards[record.number]:
                yield record.number


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    with storage_errors(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        let_go(descriptor)


def _put_back(workshop: Path, name: str, cache: int) -> None:
    """Rename a shard, which is on the disk already, into the cache."""
    with storage_errors(workshop.with_suffix("") / name):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.rmdir(name, dir_fd=cache)  # a directory in its place; one that is not empty is somebody's
        os.rename(workshop / name, name, dst_dir_fd=cache)
        os.fsync(cache)


def _reasons(manifest: Manifest, samples: int) -> Iterator[str]:
    """What is known of why shards come out different."""
    if samples not in (0, manifest.samples):  # 0: a stream's, which is counted at its end
        yield f"the dataset had {manifest.samples} samples, has {samples} now"
        return
    now = {"zstd": compression.library_version(), "lmdb": shard.library_version()}
    versions = [
        f"{name} {manifest.written_by.get(name, '?')}, here is {version}"
        for name, version in now.items()
        if manifest.written_by.get(name) != version
    ]
    if versions:
        yield f"the cache was written with {'; '.join(versions)}"
    if manifest.page_bytes != shard.page_bytes():
        yield f"it was written with pages of {manifest.page_bytes} bytes, here they have {shard.page_bytes()}"
    if not versions and manifest.page_bytes == shard.page_bytes():
        yield "versions are the same, so the dataset gives other samples than it did, or the manifest is not true"
