"""Samples -> columns, a block of them at a time.

What :func:`shardcache.format.schema.splitter` does with one sample is done here with many at once: a node that all of
them fit costs a few calls for the block. Where one does not fit, they are taken apart one by one.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

from shardcache.format.schema import (
    DictNode,
    Leaf,
    Node,
    RecordNode,
    TupleNode,
    columns_below,
    record_kind,
    splitter,
)

Values = Sequence[Any] | None
Parts = Sequence[Sequence[Any]] | None
BlockSplitter = Callable[[Sequence[Any]], list[Values]]


def block_splitter(root: Node) -> BlockSplitter:
    """A function from samples, at least one, to the values of each column; None for a column that has nothing here."""
    split = _splitter(root)

    def columns_of(samples: Sequence[Any]) -> list[Values]:
        columns: list[Values] = []
        split(samples, columns)
        return columns

    return columns_of


def _splitter(node: Node) -> Callable[[Sequence[Any], list[Values]], None]:
    if isinstance(node, Leaf):
        return lambda values, out: out.append(values)
    take, below, one_by_one = _taker(node), [_splitter(item) for item in node.items], splitter(node)
    width = columns_below(node)

    def split(values: Sequence[Any], out: list[Values]) -> None:
        parts = take(values)
        if parts is not None:
            out.append(None)
            for part, further in zip(parts, below, strict=True):
                further(part, out)
            return
        flat: list[Any] = []
        for value in values:
            one_by_one(value, flat)
        out.extend(flat[column::width] for column in range(width))

    return split


def _taker(node: Node) -> Callable[[Sequence[Any]], Parts]:
    """A function from values to the values of each item of ``node``; None where it is not sure that all of them fit."""
    if isinstance(node, DictNode):
        return _dict_taker(node)
    if isinstance(node, RecordNode):
        return _record_taker(node)
    cls, length = tuple if isinstance(node, TupleNode) else list, len(node.items)

    def take(values: Sequence[Any]) -> Parts:
        if set(map(type, values)) == {cls} and set(map(len, values)) == {length}:
            return list(zip(*values, strict=True))
        return None

    return take


def _dict_taker(node: DictNode) -> Callable[[Sequence[Any]], Parts]:
    cls, keys, plain = OrderedDict if node.ordered else dict, node.keys, {str}
    pick = itemgetter(*keys) if len(keys) > 1 else lambda value: (value[keys[0]],)

    def take(values: Sequence[Any]) -> Parts:
        if set(map(type, values)) != {cls} or set(map(len, values)) != {len(keys)}:
            return None
        # 1, 1.0 and True are the same key, but not the same sample: only keys that are text are compared at once.
        if set(map(type, keys)) != plain or set(map(type, chain.from_iterable(values))) != plain:
            return None
        if node.ordered and set(map(tuple, values)) != {keys}:
            return None
        try:
            return list(zip(*map(pick, values), strict=True))
        except KeyError:
            return None

    return take


def _record_taker(node: RecordNode) -> Callable[[Sequence[Any]], Parts]:
    known, getters = (node.name, node.fields, node.dataclass), [attrgetter(field) for field in node.fields]

    def take(values: Sequence[Any]) -> Parts:
        classes = set(map(type, values))
        if any(record_kind(cls) != known for cls in classes):
            return None
        try:
            return [list(map(get, values)) for get in getters]
        except AttributeError:
            return None

    return take
