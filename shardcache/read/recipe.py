"""What the caller wants made of the rows: the same for every epoch and worker."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shardcache.errors import ShardCacheWarning, UsageError
from shardcache.read.cache import Cache
from shardcache.read.collate import Policies
from shardcache.read.decode import Decoder
from shardcache.read.fields import RAGGED, Field
from shardcache.read.plan import LANES
from shardcache.read.pool import Pool
from shardcache.read.settings import row_bytes
from shardcache.read.transforms import Transform

# Single samples are read, and batches handed from thread to thread, as many together as this; but not more than so many
# bytes.
ROWS_AT_ONCE = 1024
ROWS_PLANNED = 4096  # at once: NumPy's calls cost little beside so many
DECODED_AT_ONCE = 32  # of images, whose size is not known before
BYTES_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Recipe:
    """What to make of the rows, from a cache to what is yielded."""

    cache: Cache
    fields: tuple[Field, ...]
    seed: int
    batch_size: int | None
    policies: Policies
    decoders: Mapping[str, Decoder]
    transform: Transform | None
    column_transforms: Mapping[str, Transform]
    batch_transform: Transform | None
    collate_fn: Callable[[list[Any]], Any] | None
    with_meta: bool
    transport: str
    memory: Pool = field(default_factory=Pool)  # of batches that are used where they are made

    @property
    def makes_samples(self) -> bool:
        """Whether whole samples are built, one by one, on the way to what is yielded."""
        return self.batch_size is None or self.transform is not None or self.collate_fn is not None

    @cached_property
    def _rows_at_once(self) -> int:
        most = DECODED_AT_ONCE if self.decoders else ROWS_AT_ONCE
        return max(1, min(most, int(BYTES_AT_ONCE / row_bytes(self.cache.manifest, self.fields))))

    @property
    def steps_at_once(self) -> int:
        """How many steps are read together: samples are many, and each is a step."""
        return self._rows_at_once if self.batch_size is None else 1

    @property
    def steps_planned(self) -> int:
        """How many steps the plan is asked for at once: more than one where some are of the same lane."""
        steps = ROWS_PLANNED // (self.batch_size or 1)
        return steps if steps >= 2 * LANES else 1

    @property
    def steps_ahead(self) -> int:
        """How many steps a thread that decodes ahead hands over together."""
        return max(1, self._rows_at_once // (self.batch_size or 1))

    @cached_property
    def bytes_at_once(self) -> float:
        """How many bytes are decoded together, in the mean."""
        return row_bytes(self.cache.manifest, self.fields) * (self.batch_size or self.steps_at_once)

    @property
    def draws(self) -> bool:
        """Whether a transform may draw from the global generators."""
        calls = [self.transform, self.batch_transform, *self.column_transforms.values()]
        return any(call is not None and not call.takes_rng for call in calls)


def transforms_of(transform: Any) -> tuple[Transform | None, dict[str, Transform]]:
    """A transform of whole samples, or transforms by column."""
    if transform is None:
        return None, {}
    if isinstance(transform, Mapping):
        return None, {str(name): Transform(call, f"transform[{name!r}]") for name, call in transform.items()}
    return Transform(transform, "transform"), {}


def say_what_is_a_list(fields: Sequence[Field], by_column: Mapping[str, Transform]) -> None:
    """Columns whose shape varies come as lists: say so once, before somebody wonders."""
    ragged = [field.name for field in fields if field.batch == RAGGED and field.name not in by_column]
    if ragged:
        names = ", ".join(map(repr, ragged))
        wanted = ", ".join(f"{name!r}: 'pad'" for name in ragged)
        warnings.warn(
            f"the shape of {names} varies: batches hold a list; for tensors: collate={{{wanted}}}; "
            "collate='list' says that a list is meant",
            ShardCacheWarning,
            stacklevel=3,
        )


def check(recipe: Recipe) -> None:
    """:class:`UsageError` where the wishes do not go together, or with the cache."""
    known = {field.name for field in recipe.fields}
    named = [("transform", name) for name in recipe.column_transforms]
    if recipe.transform is None:
        named += [("collate", name) for name in recipe.policies.named]
    for what, name in named:
        if name not in known:
            raise UsageError(
                f"{what} for {name!r}: there is no such column; the columns are {', '.join(sorted(known))}"
            )
    if recipe.collate_fn is not None and not callable(recipe.collate_fn):
        raise UsageError(f"collate_fn must be callable, was {type(recipe.collate_fn).__qualname__}")
    if recipe.batch_size is None:
        for what, given in (("collate_fn", recipe.collate_fn), ("batch_transform", recipe.batch_transform)):
            if given is not None:
                raise UsageError(f"{what} needs batch_size: without it single samples are yielded")
    if type(recipe.seed) is not int:
        raise UsageError(f"seed must be an int, was {recipe.seed!r}")
    if recipe.transport not in ("auto", "torch"):
        raise UsageError(f"transport must be 'auto' or 'torch', was {recipe.transport!r}")
