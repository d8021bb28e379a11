"""From some samples to the structure and the columns of a cache.

What is found here is what most samples look like. A later sample may differ: the format stores it all the same
(``spec``, sections 3 and 6), only less compactly.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

from shardcache.format import dtypes, nested, spec
from shardcache.format.schema import (
    ABSENT,
    Column,
    DictNode,
    Leaf,
    ListNode,
    Node,
    RecordNode,
    TupleNode,
    column_name,
    path_name,
    record_kind,
    walk,
)

_MAX_STRUCTURE_DEPTH = 32
_MAX_PLAIN_ITEMS = 32  # a longer list of plain numbers is data, not structure
_PLAIN = (int, float, bool, str, bytes, type(None))


def infer(samples: Sequence[Any]) -> tuple[Node, tuple[Column, ...]]:
    """The structure that fits all of ``samples``, and a column for each of its nodes, in preorder."""
    leaves: dict[tuple[str, ...], Column] = {}
    structure = _node(samples, (), leaves)
    if sum(1 for _ in walk(structure)) > spec.MAX_COLUMNS:
        leaves.clear()
        structure = _leaf(samples, (), leaves)
    columns = []
    for _, path, node in walk(structure):
        if isinstance(node, Leaf):
            columns.append(leaves[path])
        else:
            columns.append(Column(column_name(path, node), "nested", "|u1", (None,)))
    return structure, tuple(columns)


def _node(values: Sequence[Any], path: tuple[str, ...], leaves: dict[tuple[str, ...], Column]) -> Node:
    first = values[0]
    cls = type(first)
    if len(path) < _MAX_STRUCTURE_DEPTH and all(type(value) is cls for value in values):
        if cls in (tuple, list) and _is_structure(values):
            items = _items(zip(*values, strict=True), [str(k) for k in range(len(first))], path, leaves)
            return TupleNode(items) if cls is tuple else ListNode(items)
        if cls in (dict, collections.OrderedDict) and (keys := _common_keys(values)):
            parts = ([value[key] for value in values if key in value] for key in keys)
            ordered = cls is not dict
            return DictNode(tuple(keys), _items(parts, [str(key) for key in keys], path, leaves), ordered)
        kind = record_kind(cls)
        if kind is not None and kind[1] and all(hasattr(value, field) for value in values for field in kind[1]):
            parts = ([getattr(value, field) for value in values] for field in kind[1])
            return RecordNode(kind[0], kind[1], _items(parts, list(kind[1]), path, leaves), kind[2])
    return _leaf(values, path, leaves)


def _items(
    parts: Iterable[Sequence[Any]], names: list[str], path: tuple[str, ...], leaves: dict[tuple[str, ...], Column]
) -> tuple[Node, ...]:
    return tuple(_node(part, (*path, name), leaves) for part, name in zip(parts, names, strict=True))


def _is_structure(values: Sequence[Any]) -> bool:
    length = len(values[0])
    if not length or any(len(value) != length for value in values):
        return False
    return length <= _MAX_PLAIN_ITEMS or not all(isinstance(item, _PLAIN) for item in values[0])


def _common_keys(values: Sequence[dict[Any, Any]]) -> list[Any] | None:
    """The keys of all dicts in order of appearance; None where they are data rather than names of fields."""
    keys = list(dict.fromkeys(key for value in values for key in value))
    names = {str(key) for key in keys}
    if any(key is not None and type(key) not in (str, int, bool) for key in keys) or len(names) < len(keys):
        return None
    if any(type(key) is int and not -(1 << 63) <= key < 1 << 63 for key in keys) or any(not _is_text(n) for n in names):
        return None
    if "" in names or len(keys) > 2 * max(len(value) for value in values) or not all(values):
        return None
    return keys


def _is_text(name: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in name)


def _leaf(values: Sequence[Any], path: tuple[str, ...], leaves: dict[tuple[str, ...], Column]) -> Node:
    leaves[path] = _leaf_column(path_name(path) or "sample", values)
    return Leaf()


def _leaf_column(name: str, values: Sequence[Any]) -> Column:
    """The one type of all values (None aside), with the shape that they share; ``nested`` where there is none."""
    values = [value for value in values if value is not None and value is not ABSENT]
    types = {nested.leaf_type(value) for value in values}
    plain = {"int": "<i8", "float": "<f8", "bool": "|b1"}
    type_ = types.pop() if len(types) == 1 else "nested"
    if type_ in plain:
        return Column(name, type_, plain[type_], ())
    if type_ in ("array", "tensor", "scalar"):
        kinds = {(str(value.dtype) if type_ == "tensor" else value.dtype.str, value.ndim) for value in values}
        if len(kinds) == 1 and not (type_ == "tensor" and values[0].is_quantized):
            dtype = dtypes.tensor_name(values[0].dtype) if type_ == "tensor" else values[0].dtype.str
            return Column(name, type_, dtype, _common_shape([value.shape for value in values]))
        type_ = "nested"
    return Column(name, type_, "|u1", (None,))


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int | None, ...]:
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
