"""What a cache holds as its user sees it: the structure of a sample and its fields.

A field is a leaf of the structure; or an inner node, with everything below it, where some samples did not have the
shape that the structure says. Whether a batch holds a tensor or a list of it follows from here, never from one batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardcache.errors import StructureError, UsageError, printable
from shardcache.format import dtypes
from shardcache.format.columns import MASKED, BlockRows, Form
from shardcache.format.manifest import Manifest
from shardcache.format.schema import (
    ABSENT,
    DictNode,
    Leaf,
    Node,
    TupleNode,
    columns_below,
    item_names,
    item_positions,
    joiner,
    makers,
    path_name,
    walk,
)

TENSOR, RAGGED, LIST = "tensor", "ragged", "list"


@dataclass(frozen=True)
class Field:
    """One field of a sample.

    ``batch`` says what a batch holds of it: ``"tensor"``; ``"ragged"``, a list of arrays or tensors whose shapes differ
    and that can be padded; ``"list"``, of anything else. ``shape`` has None where a dimension differs between samples.
    """

    name: str
    type: str
    dtype: str
    shape: tuple[int | None, ...]
    optional: bool
    batch: str
    codec: str
    why: str
    raw_bytes: int
    stored_bytes: int
    position: int
    positions: range
    node: Node

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape of each value of a fixed field."""
        return tuple(size for size in self.shape if size is not None)

    @property
    def tensor_dtype(self) -> str:
        """The name of the torch dtype that holds the values."""
        return self.dtype if self.type == "tensor" else dtypes.tensor_name_of_array(self.dtype) or ""

    @property
    def is_swapped(self) -> bool:
        """Whether the stored values have the other byte order than this machine."""
        return self.type in ("array", "scalar") and dtypes.is_swapped(self.dtype)

    def __str__(self) -> str:
        if self.type in ("tensor", "array", "scalar"):
            text = f"{self.type} {self.dtype.lstrip('<|')}"
            if self.type != "scalar":
                text += f" [{', '.join('?' if size is None else str(size) for size in self.shape)}]"
        else:
            text = self.type
        return f"{text} or None" if self.optional else text


class Schema:
    """The fields of a cache, in order: ``schema["label"]``, ``len(schema)``, iteration."""

    def __init__(self, manifest: Manifest) -> None:
        self.structure = manifest.structure
        self.fields = tuple(_fields(manifest, manifest.structure, 0, ()))
        self._by_name = {field.name: field for field in self.fields}

    @property
    def fixed_positions(self) -> frozenset[int]:
        """The columns of which every sample has a value of one shape."""
        return frozenset(field.position for field in self.fields if field.batch == TENSOR)

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __getitem__(self, name: str | int) -> Field:
        field = self._by_name.get(str(name))
        if field is None:
            raise StructureError(f"there is no column {str(name)!r}; the columns are {', '.join(self._by_name)}")
        return field

    def __repr__(self) -> str:
        names = [printable(field.name) for field in self.fields]
        width = max(map(len, names))
        return "\n".join(f"{name:<{width}}  {field}" for name, field in zip(names, self.fields, strict=True))

    def choose(self, names: Sequence[str | int] | str | int | None) -> tuple[Field, ...]:
        """The named fields in the cache's order, all for None; a name may be an inner one: ``meta`` for ``meta/size``.

        :class:`StructureError` where there is none of that name.
        """
        if names is None:
            return self.fields
        chosen: set[str] = set()
        names = [names] if isinstance(names, (str, int)) else names
        if not names:
            raise UsageError(f"columns must name one column or more; the columns are {', '.join(self._by_name)}")
        for name in names:
            below = [field.name for field in self.fields if field.name.startswith(f"{name}/")]
            chosen.update(below or [self[name].name])
        return tuple(field for field in self.fields if field.name in chosen)


def _fields(manifest: Manifest, node: Node, position: int, path: tuple[str, ...]) -> Iterator[Field]:
    positions = range(position, position + columns_below(node))
    if isinstance(node, Leaf) or manifest.totals[position].forms:
        yield _field(manifest, node, positions, path)
        return
    for (item, at), name in zip(item_positions(node, position), item_names(node), strict=True):
        yield from _fields(manifest, item, at, (*path, name))


def _field(manifest: Manifest, node: Node, positions: range, path: tuple[str, ...]) -> Field:
    column, totals = manifest.columns[positions[0]], [manifest.totals[at] for at in positions]
    forms = set(totals[0].forms)
    plain = {Form(form & ~MASKED) for form in forms} - {Form.EMPTY}
    is_plain = isinstance(node, Leaf) and plain and Form.NESTED not in plain
    type_ = column.type if is_plain else "nested"
    optional = is_plain and any(form & MASKED for form in forms)
    batch = LIST
    if not optional and is_plain and (type_ == "tensor" or dtypes.tensor_name_of_array(column.dtype)):
        if plain == {Form.FIXED}:
            batch = TENSOR
        elif type_ in ("array", "tensor"):
            batch = RAGGED
    shape = column.shape
    if Form.RAGGED in plain and None not in shape:
        shape = (None,) * len(shape)
    return Field(
        name=path_name(path) or "sample",
        type=type_,
        dtype=column.dtype,
        shape=shape,
        optional=bool(optional),
        batch=batch,
        codec=column.codec,
        why=column.why,
        raw_bytes=sum(one.raw_bytes for one in totals),
        stored_bytes=sum(one.stored_bytes for one in totals),
        position=positions[0],
        positions=positions,
        node=node,
    )


class Assembler:
    """Values of columns or fields -> a sample or a batch in the cache's structure.

    Records come back as the classes in ``types`` that fit. ``positions`` are the columns that ``fields`` need.
    """

    def __init__(self, manifest: Manifest, fields: Sequence[Field], types: Sequence[type] = ()) -> None:
        self.positions = sorted({at for field in fields for at in field.positions})
        self._size = len(manifest.columns)
        self._makers = makers(manifest.structure, types)
        self._kept = {
            position
            for position, _, node in walk(manifest.structure)
            if not set(range(position, position + columns_below(node))).isdisjoint(self.positions)
        }
        self._join = joiner(manifest.structure, self._makers, self._kept.__contains__)
        # A tuple or dict whose items are all fields needs no joiner, where no value is ABSENT.
        root = manifest.structure
        is_plain = isinstance(root, TupleNode) or (isinstance(root, DictNode) and not root.ordered)
        leaves = all(isinstance(node, Leaf) for node in (*root.items, *(field.node for field in fields)))
        self._is_flat = is_plain and len(fields) == len(root.items) and leaves
        self._keys = root.keys if isinstance(root, DictNode) else None
        self._unsure = [field.position for field in fields if field.batch != TENSOR]

    def join(self, values: Mapping[int, Any]) -> Any:
        """The whole from its parts: values of all columns for a sample, one entry a field for a batch."""
        if self._is_flat and not any(values.get(at, ABSENT) is ABSENT for at in self._unsure):
            row = tuple([values[position] for position in self.positions])
            return row if self._keys is None else dict(zip(self._keys, row, strict=True))
        whole = self._join([values.get(position, ABSENT) for position in range(self._size)])
        return None if whole is ABSENT else whole  # a sample without any of the columns that were asked for

    def taker(self, columns: Mapping[int, BlockRows]) -> Callable[[int], Any] | None:
        """A function from a row of a block to its sample, where every column has a value there; else None."""
        if not self._is_flat or any(at not in columns or columns[at].states is not None for at in self.positions):
            return None
        takers = [columns[position].taker() for position in self.positions]
        if self._keys is None:
            return lambda row: tuple([take(row) for take in takers])
        items = list(zip(self._keys, takers, strict=True))
        return lambda row: {key: take(row) for key, take in items}

    def join_all(self, columns: Mapping[int, Sequence[Any]]) -> list[Any]:
        """A whole for each row of ``columns``, which have one list of values for each field."""
        if self._is_flat and not any(value is ABSENT for at in self._unsure for value in columns[at]):
            fields = [columns[position] for position in self.positions]
            return list(zip(*fields, strict=True)) if self._keys is None else _dicts(self._keys, fields)
        at = list(columns)
        return [self.join(dict(zip(at, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def field_joiner(self, field: Field) -> Callable[[Sequence[Any]], Any]:
        """What builds a field of several columns from a list of all columns' values."""
        return joiner(field.node, self._makers, self._kept.__contains__, field.position)


def _dicts(keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> list[Any]:
    """A dict for each row of some columns; made column by column, which takes a fifth of the time."""
    dicts = [{keys[0]: value} for value in columns[0]] if keys else []
    for key, column in zip(keys[1:], columns[1:], strict=True):
        for whole, value in zip(dicts, column, strict=True):
            whole[key] = value
    return dicts
