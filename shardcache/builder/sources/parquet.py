"""Parquet files, by row groups."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from shardcache.builder.sources.patterns import files_of, missing
from shardcache.errors import MissingExtraError, SourceError, UnsupportedTypeError, UsageError

_KEPT_BYTES = 128 << 20  # of row groups that were decoded; at least one is kept


class Parquet:
    """Rows of Parquet files: a dict by column.

    Numbers keep their type (int64, double and bool as Python's, others as NumPy scalars), dates and times are
    ``numpy.datetime64`` in UTC, lists of numbers are arrays, structs are dicts, strings and binary what they are. Row
    groups are decoded whole, and some are kept, so that rows are cheap in the order of the files
    (``build(layout="source")``), and at random only where row groups are small or all of them take less than 128 MiB.

    Args:
        patterns: ``*``, ``?``, ``[...]``, ``**`` (any depth), ``{a,b}``, ``{00..17}``.
        columns: the names of those that are wanted; default: all.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UsageError: there is no such column.
        UnsupportedTypeError: a column has a type that cannot be stored (decimals, maps, durations, unions); ``columns``
            can leave it out.
        SourceError: nothing matches, a file is not Parquet, or the files have different columns.
    """

    def __init__(self, *patterns: str | os.PathLike[str], columns: Sequence[str] | None = None) -> None:
        self.paths = files_of(patterns)
        self.columns = [columns] if isinstance(columns, str) else columns
        schema, sizes, self._groups = None, [], []
        for number, path in enumerate(self.paths):
            file = _opened(path)
            found = _chosen(file.schema_arrow, self.columns, path)
            if schema is not None and not found.equals(schema):
                raise SourceError(
                    f"{path}: must have the columns of {self.paths[0]} ({_said(schema)}), has {_said(found)}"
                )
            schema = found
            sizes += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._groups += [(number, group) for group in range(file.num_row_groups)]
            file.close()
        for field in schema or ():
            _check(field.type, field.name, self.paths[0])
        self._ends = np.cumsum([0, *sizes])[1:]
        self._reset()

    def _reset(self) -> None:
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, index, "right"))
        with self._lock:
            table = self._table(group)
        row = index - (int(self._ends[group - 1]) if group else 0)
        return {name: _value(table.column(name)[row]) for name in table.column_names}

    def _table(self, number: int) -> Any:
        table = self._kept.pop(number, None)
        if table is None:
            file, group = self._groups[number]
            try:
                opened = _opened(self.paths[file])
                table = opened.read_row_group(group, columns=self.columns).combine_chunks()
                opened.close()
            except (OSError, ValueError) as error:
                raise SourceError(f"{self.paths[file]}, row group {group}: cannot be read: {error}") from error
        self._kept[number] = table
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return table


def _opened(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(missing("pyarrow", "parquet")) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        raise SourceError(f"{path}: cannot be read as Parquet: {error}") from error


def _chosen(schema: Any, columns: Sequence[str] | None, path: str) -> Any:
    import pyarrow

    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        raise SourceError(f"{path}: the column {min(twice)!r} is there twice")
    absent = [name for name in columns or () if name not in schema.names]
    if absent:
        raise UsageError(f"{path}: there is no column {absent[0]!r}; the columns are {', '.join(schema.names)}")
    kept = schema.names if columns is None else columns
    return pyarrow.schema([schema.field(name).with_metadata(None) for name in kept])


def _said(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _check(type_: Any, name: str, path: str) -> None:
    """:class:`UnsupportedTypeError` where a type, or one in it, has no value that can be stored."""
    from pyarrow import types

    if types.is_dictionary(type_):
        _check(type_.value_type, name, path)
    elif _is_list(type_):
        _check(type_.value_type, f"{name}[]", path)
    elif types.is_struct(type_):
        for field in type_:
            _check(field.type, f"{name}.{field.name}", path)
    elif not (
        types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_) or types.is_null(type_)
        or types.is_string(type_) or types.is_large_string(type_) or _is_binary(type_)
        or types.is_timestamp(type_) or types.is_date(type_)
    ):  # fmt: skip
        raise UnsupportedTypeError(
            f"{path}, column {name!r}: values of type {type_} cannot be stored; columns=[...] can leave it out"
        )


def _is_list(type_: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_))


def _is_binary(type_: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(type_) or types.is_large_binary(type_) or types.is_fixed_size_binary(type_))


def _value(scalar: Any) -> Any:
    """A value of Arrow's as Python has it, without loss."""
    from pyarrow import types

    type_ = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_dictionary(type_):
        return _value(scalar.value)
    if types.is_struct(type_):
        return {name: _value(part) for name, part in scalar.items()}
    if _is_list(type_):
        values = scalar.values
        if _is_number(type_.value_type) and not values.null_count:
            return values.to_numpy(zero_copy_only=False).copy()
        return [_value(item) for item in values]
    if types.is_timestamp(type_):
        return np.datetime64(scalar.value, type_.unit)
    if types.is_date(type_):
        return np.datetime64(scalar.as_py(), "D")
    if _is_number(type_) and not (types.is_int64(type_) or types.is_float64(type_)):
        return np.dtype(type_.to_pandas_dtype()).type(scalar.as_py())
    return scalar.as_py()


def _is_number(type_: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(type_) or types.is_floating(type_))
