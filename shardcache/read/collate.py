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
    """``index``: ``cache[index]`` is the sample, int64 [batch]. ``valid``: False where a row fills up the batch."""

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
        if not isinstance(self.value, int | float | np.integer | np.floating):
            raise UsageError(f"Pad: value must be a number, was {self.value!r}")

    def __call__(self, name: str, values: Sequence[Any]) -> Padded:
        """Pad tensors or arrays of one dtype and number of dimensions."""
        tensors = [as_tensor(value) for value in values]
        if any(tensor is None for tensor in tensors) or len({(t.dtype, t.dim()) for t in tensors if t is not None}) > 1:
            kinds = sorted({_kind(value) for value in values})
            raise StructureError(
                f"column {name!r} cannot be padded: it holds {' and '.join(kinds)}; tensors or arrays of one dtype and "
                "number of dimensions can be"
            )
        rows = [tensor for tensor in tensors if tensor is not None]
        shapes = np.array([tuple(row.shape) for row in rows], np.int64).reshape(len(rows), -1)
        largest = shapes.max(axis=0)
        largest = -(-largest // self.multiple_of) * self.multiple_of
        data = self._filled(name, (len(rows), *largest.tolist()), rows[0].dtype)
        for number, row in enumerate(rows):
            data[number][tuple(slice(size) for size in row.shape)] = row
        lengths = torch.from_numpy(shapes)
        return Padded(data, lengths[:, 0] if lengths.shape[1] == 1 else lengths)

    def _filled(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Where rows are laid; of -100 as a uint8 torch would make 156."""
        try:
            is_rounded = dtype.is_floating_point or dtype.is_complex
            if is_rounded or torch.full((), self.value, dtype=dtype).item() == self.value:
                return torch.full(shape, self.value, dtype=dtype)
        except RuntimeError:  # "cannot be converted without overflow"
            pass
        raise UsageError(f"column {name!r}: {str(dtype)[6:]} cannot be padded with {self.value!r}")


def _kind(value: Any) -> str:
    tensor = as_tensor(value)
    return type(value).__name__ if tensor is None else f"{tensor.dim()}-dimensional {str(tensor.dtype)[6:]}"


Policy = str | Pad
_WHAT = "'list', 'pad' or Pad(value, multiple_of=...)"


class Policies:
    """What the user wants of columns: by name, and of those whose shape may vary."""

    def __init__(self, collate: Policy | Mapping[Any, Policy] | None) -> None:
        self.named: dict[str, str | Pad] = {}
        self._default: str | Pad = "stack"
        if isinstance(collate, Mapping):
            self.named = {str(name): self._checked(policy) for name, policy in collate.items()}
        elif collate is not None:
            self._default = self._checked(collate)

    @staticmethod
    def _checked(policy: Any) -> str | Pad:
        if policy == "pad":
            return Pad()
        if policy == "list" or isinstance(policy, Pad):
            return policy  # type: ignore[no-any-return]
        raise UsageError(f"collate must be {_WHAT}, or a dict of these by column, was {policy!r}")

    def of(self, name: str, *, varies: bool) -> str | Pad:
        """``"list"``, a :class:`Pad`, or ``"stack"`` where nothing was said of such a column."""
        return self.named.get(name, self._default if varies else "stack")


def as_tensor(value: Any) -> torch.Tensor | None:
    """A tensor or array as a tensor that shares its memory where it can; None of anything else."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        native = value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
        # torch has neither negative strides (a flipped image) nor memory that must not be written (np.frombuffer).
        is_shareable = native.flags.writeable and min(native.strides, default=0) >= 0
        try:
            return torch.from_numpy(native if is_shareable else native.copy())
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


def rows_of(field: Field, out: torch.Tensor) -> list[Any]:
    """The values of a gathered field one by one, each owning its memory, as they went in."""
    if field.type == "tensor":
        return list(map(torch.Tensor.clone, out.unbind(0)))
    if field.type in ("int", "float", "bool"):
        values: list[Any] = out.tolist()
        return values
    dtype = dtypes.array_dtype(field.dtype)
    array = out.view(-1).view(torch.uint8).numpy().view(dtype).reshape(out.shape)
    if field.type == "scalar":
        return list(array)
    if array.ndim == 1:
        return [array[number, ...].copy() for number in range(len(array))]
    return list(map(np.ndarray.copy, array))


def apart(field: Field, rows: list[torch.Tensor]) -> list[Any]:
    """Tensors, each of which lies in memory of its own, as they went in."""
    if field.type == "tensor":
        return rows
    dtype = dtypes.array_dtype(field.dtype)
    return [row.view(-1).view(torch.uint8).numpy().view(dtype).reshape(row.shape) for row in rows]


def list_column(field: Field, values: list[Any], policies: Policies) -> Any:
    """The batch of a field that is no tensor: padded where that was asked for, else a list."""
    policy = policies.of(field.name, varies=field.batch == RAGGED)
    if isinstance(policy, Pad):
        return policy(field.name, values)
    return [as_tensor(value) for value in values] if field.batch == RAGGED else values


def collate_values(name: str, values: Sequence[Any], policies: Policies) -> Any:
    """A column of a batch from values that a transform returned.

    Values that could be stacked but for their shapes are an error, not a list: what a batch holds must not depend on
    which samples are in it.
    """
    first, cls = values[0], type(values[0])
    tensors = [as_tensor(value) for value in values]
    are_tensors = all(tensor is not None for tensor in tensors)
    policy = policies.of(name, varies=are_tensors and any(value.ndim for value in values))
    if isinstance(policy, Pad):
        return policy(name, values)
    if policy == "list":
        return list(values)
    if all(type(value) is cls for value in values):
        if cls in (int, float, bool):
            return _numbers(name, values, {int: torch.int64, float: torch.float64, bool: torch.bool}[cls])
        if isinstance(first, np.generic) and first.dtype.kind in "biufc":
            numbers = as_tensor(np.array(values))
            return list(values) if numbers is None else numbers
        if are_tensors:
            return _stack(name, [tensor for tensor in tensors if tensor is not None])
    return list(values)


def _numbers(name: str, values: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
    try:
        return torch.tensor(values, dtype=dtype)
    except (ValueError, OverflowError, RuntimeError) as error:
        raise UsageError(
            f"column {name!r}: the transform returned ints beyond 64 bits, which no tensor holds; "
            f"say collate={{{name!r}: 'list'}}"
        ) from error


def _stack(name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        shown = " and ".join(f"{list(shape)} {str(dtype)[6:]}" for shape, dtype in sorted(kinds, key=str)[:2])
        raise UsageError(
            f"column {name!r}: the transform returned tensors of {shown} in one batch; "
            f"make them equal, or say collate={{{name!r}: 'list'}} or 'pad'"
        )
    return torch.stack(tensors)


def collate_samples(values: Sequence[Any], policies: Policies, name: str = "") -> Any:
    """Samples of one structure -> a batch of that structure."""
    first, cls = values[0], type(values[0])
    if policies.named.get(name) == "list":  # also where all samples of this batch happen to have one structure
        return list(values)
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
