"""House keeping: what there is, what may go, and in which order."""

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from shardcache.errors import CacheError, CacheNotFoundError, FormatVersionError, StorageError, UsageError
from shardcache.read.hold import replaced
from shardcache.registry.store import Slot, slots

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Kept(msgspec.Struct, frozen=True):
    """One cache of the folder, as ``shardcache ls`` shows it. Times are seconds since the epoch.

    ``state`` is ``"published"``, ``"unfinished"``, ``"damaged"``, or ``"newer"``: of a format that is not read here.
    """

    slot: Slot
    samples: int | None
    file_bytes: int
    made: float | None
    last_used: float
    is_in_use: bool
    is_pinned: bool
    state: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``json``."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name != "slot"}
        return {"name": self.slot.name, "key": self.slot.key, "path": str(self.slot.path), **values}


def listing(root: Path, name: str | None = None) -> list[Kept]:
    """Everything in the folder, the last used first."""
    return [_kept(slot) for slot in slots(root, name)]


def _kept(slot: Slot) -> Kept:
    state, samples, made, size = "unfinished", None, None, 0
    try:
        places = [slot.path, slot.path.with_name(f"{slot.key}.partial"), *replaced(slot.path)]
        size = sum(map(_bytes, places))
        if slot.is_published:
            state = "damaged"
            samples, made = slot.manifest().kept, slot.made
            state = "published"
    except CacheNotFoundError:  # it went just now
        state = "unfinished"
    except FormatVersionError:
        state = "newer"
    except (CacheError, StorageError, OSError):
        state = "damaged"
    return Kept(slot, samples, size, made, slot.last_used, slot.is_in_use, slot.is_pinned, state)


def _bytes(directory: Path) -> int:
    """Of the files in a directory: 0 where it is not there."""
    total = 0
    for file in directory.glob("*"):
        with suppress(OSError):  # it went just now
            total += file.stat().st_size
    return total


def prunable(kept: Iterable[Kept], max_size: int | None, unused_for: float | None) -> list[Kept]:
    """What to delete: unused for so many seconds, or the least recently used until the rest is at most ``max_size``.

    Never what is pinned or in use, which counts towards the size all the same.
    """
    oldest = sorted(kept, key=lambda one: one.last_used)
    free = [one for one in oldest if not one.is_pinned and not one.is_in_use]
    now, total, chosen = time.time(), sum(one.file_bytes for one in oldest), []
    for one in free:
        is_old = unused_for is not None and now - one.last_used > unused_for
        is_too_much = max_size is not None and total > max_size
        is_rest = max_size is not None and not one.file_bytes  # of what could not be deleted wholly
        if is_old or is_too_much or is_rest:
            chosen.append(one)
            total -= one.file_bytes
    return chosen


def remove(chosen: Sequence[Kept]) -> tuple[list[Kept], list[Kept]]:
    """Delete; (what is gone, what was taken into use meanwhile and stays)."""
    gone = [one for one in chosen if one.slot.remove()]
    return gone, [one for one in chosen if one not in gone]


def parse_duration(text: str) -> float:
    """``"30d"`` -> seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text)
    if match is None:
        raise UsageError(f"a time must be like '30d', '12h' or '2w', was {text!r}")
    return float(match[1]) * _UNITS[match[2]]
