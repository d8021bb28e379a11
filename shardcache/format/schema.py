"""The structure of a sample, and its columns.

A :data:`Node` tree says how a sample nests; each node is a column (:mod:`shardcache.format.spec`, section 3).
:func:`split` takes a sample apart into one value a column, :func:`join` puts it together again.
"""

import collections
import dataclasses
import keyword
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import msgspec

from shardcache.format import spec


class _Marker:
    """A value that no sample can hold."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


ABSENT = _Marker("ABSENT")


class Leaf(msgspec.Struct, frozen=True, tag="leaf", forbid_unknown_fields=True):
    """A value; its type is its column's."""

    items: ClassVar[tuple["Node", ...]] = ()


class TupleNode(msgspec.Struct, frozen=True, tag="tuple", forbid_unknown_fields=True):
    """A tuple of fixed length."""

    items: tuple["Node", ...]

    def parts(self, value: Any) -> Sequence[Any] | None:
        return value if type(value) is tuple and len(value) == len(self.items) else None

    def whole(self, parts: list[Any]) -> Any:
        return tuple(parts)


class ListNode(msgspec.Struct, frozen=True, tag="list", forbid_unknown_fields=True):
    """A list that has the same length in every sample."""

    items: tuple["Node", ...]

    def parts(self, value: Any) -> Sequence[Any] | None:
        return value if type(value) is list and len(value) == len(self.items) else None

    def whole(self, parts: list[Any]) -> Any:
        return list(parts)


class DictNode(msgspec.Struct, frozen=True, dict=True, tag="dict", forbid_unknown_fields=True):
    """A dict; a sample may lack some of the keys."""

    keys: tuple[str | int | bool | None, ...]
    items: tuple["Node", ...]
    ordered: bool = False

    def parts(self, value: Any) -> Sequence[Any] | None:
        if type(value) is not (collections.OrderedDict if self.ordered else dict):
            return None
        types = self._key_types  # 1, 1.0 and True are the same key, but not the same sample
        if not value or not all(types.get(key) is type(key) for key in value):
            return None
        if self.ordered and list(value) != [key for key in self.keys if key in value]:
            return None
        return [value.get(key, ABSENT) for key in self.keys]

    @cached_property
    def _key_types(self) -> dict[Any, type]:
        return {key: type(key) for key in self.keys}

    def whole(self, parts: list[Any]) -> Any:
        pairs = ((key, part) for key, part in zip(self.keys, parts, strict=True) if part is not ABSENT)
        return collections.OrderedDict(pairs) if self.ordered else dict(pairs)


class RecordNode(msgspec.Struct, frozen=True, tag="record", forbid_unknown_fields=True):
    """A namedtuple or a dataclass, known by its name and fields."""

    name: str
    fields: tuple[str, ...]
    items: tuple["Node", ...]
    dataclass: bool

    def parts(self, value: Any) -> Sequence[Any] | None:
        kind = record_kind(type(value))
        if kind != (self.name, self.fields, self.dataclass):
            return None
        if not all(hasattr(value, field) for field in self.fields):
            return None
        return [getattr(value, field) for field in self.fields]

    def whole(self, parts: list[Any]) -> Any:
        return plain_record(self.name, self.fields)._make(parts)


Node = Leaf | TupleNode | ListNode | DictNode | RecordNode


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one column holds, as it was understood before the build.

    ``shape`` has None for a dimension that differs between samples. ``codec`` is ``"none"`` or ``"zstd:LEVEL"``,
    ``why`` one line on how it was chosen.
    """

    name: str
    type: str
    dtype: str
    shape: tuple[int | None, ...]
    codec: str = "none"
    why: str = ""

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """The shape, or None where a dimension varies."""
        return None if None in self.shape else tuple(size for size in self.shape if size is not None)

    @property
    def is_leaf(self) -> bool:
        """Whether it is the column of a leaf: names of others end with a slash, which is written ~1 inside of names."""
        return not self.name.endswith("/")


@lru_cache(maxsize=1024)
def _record_kind(cls: Hashable) -> tuple[str, tuple[str, ...], bool] | None:
    assert isinstance(cls, type)
    if dataclasses.is_dataclass(cls):
        return cls.__name__, tuple(field.name for field in dataclasses.fields(cls)), True
    fields = getattr(cls, "_fields", None)
    if issubclass(cls, tuple) and isinstance(fields, tuple) and hasattr(cls, "_make"):
        return cls.__name__, fields, False
    return None


def record_kind(cls: Any) -> tuple[str, tuple[str, ...], bool] | None:
    """(name, fields, is a dataclass) of a namedtuple or dataclass; None of any other class."""
    if not is_class_name(getattr(cls, "__name__", "")):
        return None
    return _record_kind(cls)


def is_class_name(name: str) -> bool:
    """Whether a class can have this name."""
    return name.isidentifier() and not keyword.iskeyword(name)


def _rebuild_record(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return plain_record(name, fields)._make(values)


@lru_cache(maxsize=1024)
def plain_record(name: str, fields: tuple[str, ...]) -> Any:
    """The namedtuple class that stands for a class that the reader was not given.

    Unlike a class that ``namedtuple`` makes it can be pickled, so that samples may cross from worker to parent.
    """
    # Two names may be one to Python, which knows identifiers in form NFKC; a name that is not gives way to "_0".
    names = [field if unicodedata.is_normalized("NFKC", field) else "" for field in fields]
    base = collections.namedtuple(name, names, rename=True)  # type: ignore[misc]
    members = {"__slots__": (), "__reduce__": lambda self: (_rebuild_record, (name, fields, tuple(self)))}
    return type(name, (base,), members)


def columns_below(node: Node) -> int:
    """How many columns a node and everything below it take."""
    return 1 + sum(columns_below(item) for item in node.items)


def item_positions(node: Node, position: int) -> Iterator[tuple[Node, int]]:
    """The items of a node whose own column is ``position``, each with its column."""
    position += 1
    for item in node.items:
        yield item, position
        position += columns_below(item)


def walk(node: Node, position: int = 0, path: tuple[str, ...] = ()) -> Iterator[tuple[int, tuple[str, ...], Node]]:
    """Every node with its column and the names on the way to it, in preorder."""
    yield position, path, node
    for (item, item_position), name in zip(item_positions(node, position), item_names(node), strict=True):
        yield from walk(item, item_position, (*path, name))


def item_names(node: Node) -> list[str]:
    """What the items of a node are called in a path."""
    if isinstance(node, DictNode):
        return [str(key) for key in node.keys]
    if isinstance(node, RecordNode):
        return list(node.fields)
    return [str(number) for number in range(len(node.items))]


def column_name(path: tuple[str, ...], node: Node) -> str:
    """A path as the name of a column: ``meta/size`` for a leaf, ``meta/`` for the column of an inner node.

    A root that is a leaf is called ``sample``.
    """
    if isinstance(node, Leaf):
        return path_name(path) if path else "sample"
    return path_name(path) + "/"


def path_name(path: tuple[str, ...]) -> str:
    """The names on a path in one: ``meta/size``."""
    return "/".join(name.replace("~", "~0").replace("/", "~1") for name in path)


Splitter = Callable[[Any, list[Any]], None]


def splitter(root: Node) -> Splitter:
    """A function that takes a sample apart: ``split(sample, values)`` appends one value a column, in column order.

    A part that does not have the tree's shape goes whole into the column of its node; columns that have nothing in this
    sample get :data:`ABSENT`.
    """

    def make(node: Node) -> Splitter:
        if isinstance(node, Leaf):
            return lambda value, out: out.append(value)
        take, below = node.parts, [make(item) for item in node.items]
        missing = [ABSENT] * (columns_below(node) - 1)

        def split(value: Any, out: list[Any]) -> None:
            parts = take(value)
            if parts is None:
                out.append(value)
                out.extend(missing)
                return
            out.append(ABSENT)
            for part, further in zip(parts, below, strict=True):
                further(part, out)

        return split

    return make(root)


Maker = Callable[[list[Any]], Any]


def makers(root: Node, types: Sequence[type] = ()) -> list[Maker]:
    """For each column, what builds its value from its parts: the classes in ``types`` where name and fields fit."""
    found = [(record_kind(cls), cls) for cls in types]

    def maker(node: Node) -> Maker:
        if isinstance(node, RecordNode):
            kind = (node.name, node.fields, node.dataclass)
            cls = next((cls for known, cls in found if known == kind), None)
            if cls is not None:
                return record_maker(cls)
        return lambda parts: None if isinstance(node, Leaf) else node.whole(parts)

    return [maker(node) for _, _, node in walk(root)]


def record_maker(cls: Any) -> Maker:
    """Builds a dataclass without running ``__init__`` (its values have been through it once), or a namedtuple."""
    if not dataclasses.is_dataclass(cls):
        return lambda parts: cls._make(parts)
    names = [field.name for field in dataclasses.fields(cls)]
    bare: Any = object.__new__

    def make(parts: list[Any]) -> Any:
        record = bare(cls)
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(record, name, part)
        return record

    return make


def joiner(
    root: Node, makers: Sequence[Maker], wanted: Callable[[int], bool], position: int = 0
) -> Callable[[Sequence[Any]], Any]:
    """The way back from :func:`splitter`: ``join(values)`` builds the sample from one value a column.

    Nodes whose column is not ``wanted`` are left out: a dict lacks their keys, a tuple or list is shorter, a record is
    a namedtuple of the fields that remain.
    """

    def make(node: Node, position: int) -> Callable[[Sequence[Any]], Any]:
        kept = [(number, item, at) for number, (item, at) in enumerate(item_positions(node, position)) if wanted(at)]
        if not kept:
            return lambda values: values[position]
        below = [make(item, at) for _, item, at in kept]
        build = makers[position] if len(kept) == len(node.items) else _part_maker(node, [number for number, *_ in kept])
        optional = isinstance(node, DictNode)

        def join(values: Sequence[Any]) -> Any:
            if values[position] is not ABSENT:
                return values[position]
            parts = [further(values) for further in below]
            if all(part is ABSENT for part in parts):
                return ABSENT
            return build(parts if optional else [None if part is ABSENT else part for part in parts])

        return join

    return make(root, position)


def _part_maker(node: Node, kept: list[int]) -> Maker:
    if isinstance(node, DictNode):
        return DictNode(tuple(node.keys[number] for number in kept), (), node.ordered).whole
    if isinstance(node, RecordNode):
        return RecordNode(node.name, tuple(node.fields[number] for number in kept), (), False).whole
    return list if isinstance(node, ListNode) else tuple


def validate_structure(root: Node) -> str | None:
    """What is wrong with a tree that came from a file, or None."""

    def problem(node: Node, depth: int) -> str | None:
        if depth > spec.MAX_DEPTH:
            return f"the structure is nested deeper than {spec.MAX_DEPTH}"
        names = node.keys if isinstance(node, DictNode) else node.fields if isinstance(node, RecordNode) else None
        if names is not None and (len(names) != len(node.items) or len(set(names)) != len(names)):
            return "the structure has a node whose names do not fit its items"
        if isinstance(node, RecordNode) and not is_class_name(node.name):
            return f"the structure has a record that is called {node.name!r}"
        if not isinstance(node, Leaf) and not node.items:
            return "the structure has a node without items"
        return next((found for item in node.items if (found := problem(item, depth + 1))), None)

    return problem(root, 0)
