"""What differs between two plans, in words."""

from collections.abc import Iterator

from shardcache.format.manifest import Manifest
from shardcache.format.schema import Column

_SHOWN = 3
_DERIVED = ("cache_id", "digest")  # from the rest, and from the probed samples


def difference(found: Manifest, plan: Manifest) -> str:
    """The first differences of an interrupted build's plan to that of now."""
    names = [name for name in plan.__struct_fields__ if getattr(found, name) != getattr(plan, name)]
    if set(names) <= set(_DERIVED):
        return "the samples differ"
    said = [
        f"{name}: {getattr(found, name)!r} there, {getattr(plan, name)!r} now"
        for name in names
        if name not in (*_DERIVED, "structure", "columns")
    ]
    if {"structure", "columns"} & set(names):
        said += list(_columns(found.columns, plan.columns)) or ["the structure of a sample differs"]
    return "; ".join(said[:_SHOWN])


def _columns(found: tuple[Column, ...], now: tuple[Column, ...]) -> Iterator[str]:
    before, after = ({column.name: column for column in columns} for columns in (found, now))
    yield from (f"column {name!r}: not there, is one now" for name in after if name not in before)
    yield from (f"column {name!r}: there, is none now" for name in before if name not in after)
    for name in before.keys() & after.keys():
        for field in ("type", "dtype", "shape", "codec"):
            was, is_now = getattr(before[name], field), getattr(after[name], field)
            if was != is_now:
                yield f"column {name!r}: {field} {was!r} there, {is_now!r} now"
