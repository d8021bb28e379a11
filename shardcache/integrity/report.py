"""What :func:`~shardcache.verify` says: the problems of a cache, and which samples they cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardcache.format.manifest import Manifest

LISTED = 1000  # source indices that a problem lists
_SHOWN = 4  # and that its text shows

UNEXPECTED = "UnexpectedDigest"  # the kind of problem of a cache that is not the one that was expected


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written.

    ``block`` is numbered in its shard. ``rows`` are the rows of the cache that cannot be read because of it: none where
    no sample depends on the bytes, None where the manifest itself cannot be used, and with it nothing.
    ``source_indices`` are those of the first 1,000 of the rows.
    """

    file: str
    kind: str
    what: str
    rows: range | None
    block: int | None = None
    column: str | None = None
    source_indices: tuple[int, ...] = ()

    @property
    def consequence(self) -> str:
        """What is lost, in words."""
        if self.kind == UNEXPECTED:
            return "it is another cache, or one that somebody changed; nothing more was checked"
        if self.rows is None:
            return "nothing of the cache can be read"
        if not self.rows:
            return "no sample is affected"
        count, of = len(self.rows), f" of column {self.column!r}" if self.column else ""
        rows = f"row {self.rows[0]:,}" if count == 1 else f"rows {self.rows[0]:,} to {self.rows[-1]:,}"
        shown = ", ".join(map(str, self.source_indices[:_SHOWN])) + (", ..." if count > _SHOWN else "")
        return f"{count:,} {'value' if of else 'sample'}{'s' * (count > 1)}{of} lost: {rows} (source index {shown})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``json``; ``rows`` is [first, last + 1]."""
        return {
            "file": self.file,
            "block": self.block,
            "column": self.column,
            "kind": self.kind,
            "what": self.what,
            "consequence": self.consequence,
            "rows": None if self.rows is None else [self.rows.start, self.rows.stop],
            "source_indices": list(self.source_indices),
        }


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found. True where the cache is sound.

    ``values`` counts the stored values that were sound; ``notes`` are remarks that make no cache unsound.
    """

    path: Path
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    manifest: Manifest | None = None
    values: int = 0

    def __bool__(self) -> bool:
        return not self.problems

    @property
    def samples_lost(self) -> int:
        """How many samples have lost something."""
        skipped = np.empty(0, np.int64) if self.manifest is None else self.manifest.skipped_rows()
        bounds = [np.searchsorted(skipped, (rows.start, rows.stop)) for rows in self._lost()]
        return sum(map(len, self._lost())) - sum(int(stop - start) for start, stop in bounds)

    def source_indices(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The source indices of all samples of which something is lost, ascending."""
        ranges = [np.arange(rows.start, rows.stop, dtype=np.int64) for rows in self._lost()]
        rows = np.concatenate([np.empty(0, np.int64), *ranges])
        if self.manifest is None:
            return rows
        rows, permutation = np.setdiff1d(rows, self.manifest.skipped_rows()), self.manifest.permutation()
        return rows if permutation is None else np.sort(permutation.forward(rows))

    def _lost(self) -> list[range]:
        """The rows that lost something, as ranges that do not overlap, ascending."""
        found: list[range] = []
        for rows in sorted((problem.rows for problem in self.problems if problem.rows), key=lambda rows: rows.start):
            start = max(rows.start, found[-1].stop) if found else rows.start
            found += [range(start, rows.stop)] if start < rows.stop else []
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``json``."""
        m = self.manifest
        return {
            "path": str(self.path),
            "ok": bool(self),
            "digest": m and m.digest,
            "samples": m and m.kept,
            "shards": m and len(m.shards),
            "values": self.values,
            "file_bytes": m and sum(seal.file_bytes for seal in m.shards),
            "samples_lost": m and self.samples_lost,
            "problems": [problem.as_dict() for problem in self.problems],
            "notes": list(self.notes),
        }


def said(error: Exception) -> str:
    """An error's text without its advice to run a command: this is the command."""
    return str(error).partition(" (the file is damaged")[0].partition(" (run 'shardcache")[0]
