"""Parts of a cache without copies: which samples a view holds is an array of source indices, and nothing else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from shardcache.errors import UsageError
from shardcache.format.permutation import Integers, Permutation, derive
from shardcache.read.transforms import blamed_on

if TYPE_CHECKING:
    from shardcache.read.cache import Cache

_SPLIT_STREAM = 0x53504C4954  # "SPLIT"


def positions(indices: Any, length: int) -> Integers:
    """Indices of samples, checked: integers within the cache (negative ones count from the end), each at most once."""
    if not isinstance(indices, Iterable):
        raise UsageError(f"indices must be a list of ints, was {indices!r}")
    found = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    if found.dtype == bool:
        raise UsageError("select takes indices, was given a mask of bools: np.flatnonzero(mask) makes indices of it")
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise UsageError(f"indices must be a list of ints, was an array of {found.dtype} of {found.ndim} dimensions")
    if not len(found):
        raise UsageError("a view must hold at least one sample; no indices were given")
    found = found.astype(np.int64)
    outside = found[(found < -length) | (found >= length)]
    if len(outside):
        raise IndexError(f"index {outside[0]} is out of range: the cache has {length} samples")
    found = np.where(found < 0, found + length, found)
    values, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        raise UsageError(f"index {values[counts > 1][0]} comes twice: a view holds each sample at most once")
    return found


def split(cache: "Cache", fractions: Any, seed: int, stratify: str | None) -> dict[str, Integers]:
    """Positions of each part, ascending; parts are disjoint, and the same for the same cache and seed."""
    if not isinstance(fractions, Mapping) or not all(isinstance(one, Real) for one in fractions.values()):
        raise UsageError(f"fractions must be a dict of numbers, like {{'train': 0.9, 'val': 0.1}}, was {fractions!r}")
    if type(seed) is not int:
        raise UsageError(f"seed must be an int, was {seed!r}")
    total = sum(fractions.values())
    if not fractions or any(not 0 < fraction <= 1 for fraction in fractions.values()) or total > 1 + 1e-9:
        raise UsageError(f"fractions must be above 0 and add up to at most 1, were {dict(fractions)}")
    groups = [np.arange(len(cache))] if stratify is None else _groups(cache, stratify)
    parts: dict[str, list[Integers]] = {name: [] for name in fractions}
    for number, group in enumerate(groups):
        shuffled = group[Permutation(len(group), derive(seed, _SPLIT_STREAM, number)).forward(np.arange(len(group)))]
        ends = np.rint(np.cumsum(list(fractions.values())) * len(group)).astype(np.int64)
        for name, part in zip(fractions, np.split(shuffled, ends)[: len(fractions)], strict=True):
            parts[name].append(part)
    whole = {name: np.sort(np.concatenate(some)) for name, some in parts.items()}
    for name, part in whole.items():
        if not len(part):
            raise UsageError(f"split: {name!r} would be empty ({fractions[name]:g} of {len(cache)} samples)")
    return whole


def _groups(cache: "Cache", name: str) -> list[Integers]:
    """The positions of each value of a column, the values in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for position, value in enumerate(values(cache, [name])[0]):
        key = value.item() if getattr(value, "ndim", None) == 0 else value
        try:
            if hasattr(key, "ndim"):  # a tensor can be hashed, but no other is equal to it
                raise TypeError
            groups.setdefault(key, []).append(position)
        except TypeError:
            raise UsageError(f"stratify: column {name!r} holds {type(value).__name__}, not labels") from None
    return [np.array(group) for group in groups.values()]


def matching(cache: "Cache", columns: Sequence[str | int] | str | int, where: Callable[..., Any]) -> Integers:
    """The positions whose values of ``columns`` satisfy ``where``."""
    names = [columns] if isinstance(columns, (str, int)) else list(columns)
    if not names:
        raise UsageError("filter: columns must name one column or more, whose values where() is called with")
    if not callable(where):
        raise UsageError(f"filter: where must be callable, was {type(where).__qualname__}")
    matches = []
    for position, row in enumerate(zip(*values(cache, names), strict=True)):
        with blamed_on(f"where of sample {position}"):
            matches.append(bool(where(*row)))
    return np.flatnonzero(matches)


def values(cache: "Cache", names: Sequence[str | int]) -> list[list[Any]]:
    """The values of some columns of all samples of a view, a list a column; no other column is read."""
    fields = [cache.schema[name] for name in names]
    rows = cache.rows_of(np.arange(len(cache)))
    by_row = np.argsort(rows)
    out: list[list[Any]] = [[None] * len(rows) for _ in fields]
    per_block = cache.manifest.rows_per_block
    blocks = rows[by_row] // per_block
    for part in np.split(by_row, np.flatnonzero(np.diff(blocks)) + 1):
        offsets = (rows[part] % per_block).tolist()
        read = cache.read_fields(int(rows[part[0]] // per_block), offsets, fields)
        for column, found in zip(out, read, strict=True):
            for place, value in zip(part.tolist(), found, strict=True):
                column[place] = value
    return out
