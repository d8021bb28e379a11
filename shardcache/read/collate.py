"""Rows in the arena -> a batch; values -> a column of a batch."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from shardcache.errors import StructureError, UsageError
from shardcache.format import dtypes
from shardcache.format.schema import record_kind, record_maker
from shardcache.read.fields import RAGGED, Field


class Padded(NamedTuple):
    """A ragged column as one tensor: ``data`` [batch, *largest shape], and ``lengths``.

    ``lengths`` is [batch] for one varying dimension per row of a one-dimensional column, else [batch, dimensions].
    """

    data: torch.Tensor
    lengths: torch.Tensor


class Meta(NamedTuple):
    """``index``: source index of each sample, int64 [batch]. ``valid``: False where a row only fills up the batch."""

    index: torch.Tensor  # type: ignore[assignment]
    valid: torch.Tensor


@dataclass(frozen=True)
class Pad:
    """Collate policy: pad with ``value`` to the largest of the batch, rounded up to a multiple of ``multiple_of``."""

    value: float = 0
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if type(self.multiple_of) is not int or self.multiple_of < 1:
            raise UsageError(f"Pad: multiple_of must be 1 or more, was {self.multiple_of!r}")

    def __call__(self, name: str, values: Sequence[Any]) -> Padded:
        """Pad tensors or arrays of one dtype and number of dimensions."""
        tensors = [as_tensor(value) for value in values]
        if any(tensor is None for tensor in tensors) or len({(t.dtype, t.dim()) for t in tensors if t is not None}) > 1:
            kinds = sorted({type(value).__name__ for value in values})
            raise StructureError(f"column {name!r} cannot be padded: it holds {', '.join(kinds)} of different kinds")
        rows = [tensor for tensor in tensors if tensor is not None]
        shapes = np.array([tuple(row.shape) for row in rows], np.int64).reshape(len(rows), -1)
        largest = shapes.max(axis=0)
        largest = -(-largest // self.multiple_of) * self.multiple_of
        data = torch.full((len(rows), *largest.tolist()), self.value, dtype=rows[0].dtype)
        for number, row in enumerate(rows):
            data[number][tuple(slice(size) for size in row.shape)] = row
        lengths = torch.from_numpy(shapes)
        return Padded(data, lengths[:, 0] if lengths.shape[1] == 1 else lengths)


Policy = str | Pad
POLICIES = "'list', 'pad' or Pad(value, multiple_of=...)"


def collate_policies(collate: Policy | Mapping[str, Policy] | None, fields: Sequence[Field]) -> dict[str, Pad | None]:
    """Collate policies by field name: None for a list, a :class:`Pad` for padding."""
    named: Mapping[Any, Any]
    if collate is None or isinstance(collate, (str, Pad)):
        ragged = [field.name for field in fields if field.batch == RAGGED]
        named = {} if collate is None else dict.fromkeys(ragged, collate)
        _policy(collate)
    elif isinstance(collate, Mapping):
        named = {str(name): policy for name, policy in collate.items()}
    else:
        raise UsageError(f"collate must be {POLICIES}, or a dict of these by column, was {collate!r}")
    return {name: _policy(policy) for name, policy in named.items()}


def _policy(policy: Any) -> Pad | None:
    if policy in (None, "list"):
        return None
    if policy == "pad":
        return Pad()
    if isinstance(policy, Pad):
        return policy
    raise UsageError(f"collate must be {POLICIES}, was {policy!r}")


def as_tensor(value: Any) -> torch.Tensor | None:
    """A tensor or array as a tensor that shares its memory where it can; None of anything else."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        native = value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
        try:
            return torch.from_numpy(native)
        except TypeError:  # long doubles
            return None
    return None


def torch_dtype(field: Field) -> torch.dtype:
    """The dtype of a batch of a fixed field."""
    return dtypes.tensor_dtype(field.tensor_dtype)


def native(field: Field, out: torch.Tensor) -> torch.Tensor:
    """A gathered batch in this machine's byte order."""
    if field.is_swapped:
        out.numpy().byteswap(inplace=True)
    return out


def list_column(field: Field, values: list[Any], policies: Mapping[str, Pad | None]) -> Any:
    """The batch of a field that is no tensor: padded where that was asked for, else a list."""
    pad = policies.get(field.name)
    if pad is not None:
        return pad(field.name, values)
    return [as_tensor(value) for value in values] if field.batch == RAGGED else values


def collate_values(name: str, values: Sequence[Any], policies: Mapping[str, Pad | None]) -> Any:
    """A column of a batch from values that a transform returned.

    Values that could be stacked but for their shapes are an error, not a list: what a batch holds must not depend on
    which samples are in it.
    """
    first = values[0]
    if name in policies:
        pad = policies[name]
        return list(values) if pad is None else pad(name, values)
    cls = type(first)
    if all(type(value) is cls for value in values):
        if cls in (int, float, bool):
            return torch.tensor(values, dtype={int: torch.int64, float: torch.float64, bool: torch.bool}[cls])
        if isinstance(first, np.generic) and first.dtype.kind in "biufc":
            return torch.from_numpy(np.array(values))
        tensors = [as_tensor(value) for value in values]
        if all(tensor is not None for tensor in tensors):
            return _stack(name, [tensor for tensor in tensors if tensor is not None])
    return list(values)


def _stack(name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        shown = " and ".join(f"{list(shape)} {str(dtype)[6:]}" for shape, dtype in sorted(kinds, key=str)[:2])
        raise UsageError(
            f"column {name!r}: the transform returned tensors of {shown} in one batch; "
            f"make them equal, or say collate={{{name!r}: 'list'}} or 'pad'"
        )
    return torch.stack(tensors)


def collate_samples(values: Sequence[Any], policies: Mapping[str, Pad | None], name: str = "") -> Any:
    """Samples of one structure -> a batch of that structure."""
    first, cls = values[0], type(values[0])
    if not all(type(value) is cls for value in values):
        return collate_values(name or "sample", values, policies)

    def below(key: Any, parts: Sequence[Any]) -> Any:
        return collate_samples(parts, policies, f"{name}/{key}" if name else str(key))

    if cls in (dict, OrderedDict) and all(value.keys() == first.keys() for value in values):
        return cls((key, below(key, [value[key] for value in values])) for key in first)
    if (cls is tuple or (cls is list and not name)) and all(len(value) == len(first) for value in values):
        return cls(below(number, parts) for number, parts in enumerate(zip(*values, strict=True)))
    kind = record_kind(cls)
    if kind is not None:
        return record_maker(cls)([below(field, [getattr(value, field) for value in values]) for field in kind[1]])
    return collate_values(name or "sample", values, policies)
