"""Remarks for people, on which nothing depends: where a cache comes from, and why samples were skipped.

They are no part of the cache that the digest names: the same bytes may be made twice, on other days and machines. So
they are never trusted either: what is not as expected is taken for absent, and whoever shows it escapes it.
"""

from pathlib import Path
from typing import Any

import msgspec

from shardcache.format import spec
from shardcache.format.files import read_regular

TIME = "%Y-%m-%dT%H:%M:%SZ"  # of `built`
MAX_NOTES = 1000
_MAX_BYTES = 1 << 16
_MAX_NOTES_BYTES = 8 << 20


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """When (UTC) and in how long, by which factory and versions, from which commit, on which type of machine."""

    built: str
    seconds: float
    factory: str
    versions: dict[str, str]
    machine: str
    commit: str | None = None
    is_dirty: bool | None = None


class SkipNote(msgspec.Struct, frozen=True):
    """Why a sample was skipped: its index in the dataset, the type and the text of the error."""

    index: int
    error: str
    message: str


def read(directory: Path, name: str = spec.PROVENANCE_NAME) -> Provenance | None:
    """What was written down beside a cache; None where that is not there, or is not what was written."""
    found: Provenance | None = _remark(directory / name, Provenance, _MAX_BYTES)
    return found


def skip_notes(directory: Path) -> tuple[SkipNote, ...]:
    """Why the first of the skipped samples were, in the order of their indices; empty where nothing says so."""
    return _remark(directory / spec.SKIPPED_NAME, tuple[SkipNote, ...], _MAX_NOTES_BYTES) or ()


def _remark(path: Path, kind: Any, most: int) -> Any:
    try:
        return msgspec.json.decode(read_regular(path, most), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def as_dict(directory: Path) -> dict[str, Any] | None:
    """The same as plain values."""
    found = read(directory)
    return None if found is None else msgspec.structs.asdict(found)
