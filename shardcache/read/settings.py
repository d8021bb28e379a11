"""What the user asks of a :class:`~shardcache.CachedDataset`, checked and worked out before an epoch begins."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from shardcache.errors import ShardCacheWarning, UsageError
from shardcache.format.columns import fixed_row_bytes
from shardcache.format.manifest import Manifest
from shardcache.read.fields import TENSOR, Field
from shardcache.read.geometry import Geometry
from shardcache.read.plan import LANES, Order, Plan
from shardcache.read.topology import Ranks

DEFAULT_BUFFER_BYTES = 64 << 20
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_MIN_SPREAD = 4  # batches over which the rows of a block are spread ...
_KEPT_MATES = 25  # ... so that at most 1/25 of a row's batch-mates are the same in the next epoch


def parse_bytes(text: str) -> int:
    """``"64MiB"`` -> 67108864."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = match and _UNITS.get(match[2].upper())
    if not match or unit is None or float(match[1]) * unit < 1:
        raise UsageError(f"shuffle_buffer must be a number of samples or of bytes like '64MiB', was {text!r}")
    return int(float(match[1]) * unit)


def check_buffer(shuffle_buffer: int | str | None) -> None:
    """:class:`UsageError` where the size of a buffer has no sense."""
    if isinstance(shuffle_buffer, str):
        parse_bytes(shuffle_buffer)
    elif shuffle_buffer is not None and (type(shuffle_buffer) is not int or shuffle_buffer < 1):
        raise UsageError(f"shuffle_buffer must be 1 sample or more, or bytes like '64MiB', was {shuffle_buffer!r}")


def check_order(shuffle: bool, order: str | None) -> str:
    """The order of an epoch: ``shuffled``, ``source`` or ``stored``."""
    if order not in (None, "shuffled", "source", "stored"):
        raise UsageError(f"order must be 'shuffled', 'source' or 'stored', was {order!r}")
    if shuffle and order in ("source", "stored"):
        raise UsageError(f"shuffle=True contradicts order={order!r}: leave one of them out")
    return order or ("shuffled" if shuffle else "source")


def row_bytes(manifest: Manifest, fields: Sequence[Field]) -> float:
    """Mean decoded bytes of a row of these fields."""
    total = 0.0
    for field in fields:
        if field.batch == TENSOR:
            total += fixed_row_bytes(manifest.columns[field.position]) * manifest.samples
        else:
            total += field.raw_bytes
    return max(1.0, total / manifest.samples)


@dataclass(frozen=True)
class BatchShape:
    """How many rows a step has: on a rank (None: samples), and from each canonical rank."""

    batch_size: int | None
    strands: int
    share: int
    remainder: str


def batch_shape(
    ranks: Ranks,
    batch_size: int | None,
    global_batch_size: int | None,
    canonical_ranks: int | None,
    drop_last: bool,
    remainder: str | None,
) -> BatchShape:
    """Work out the rows of a step; :class:`UsageError` where the arguments contradict each other."""
    world = ranks.world_size
    for name, value in (("batch_size", batch_size), ("global_batch_size", global_batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise UsageError(f"{name} must be an int of 1 or more, was {value!r}")
    if global_batch_size is not None:
        if batch_size is not None and batch_size * world != global_batch_size:
            raise UsageError(
                f"batch_size={batch_size} on {world} ranks contradicts global_batch_size={global_batch_size}: give one"
            )
        if global_batch_size % world:
            raise UsageError(f"global_batch_size={global_batch_size} must be a multiple of the world size ({world})")
        batch_size = global_batch_size // world
    strands = world if canonical_ranks is None else canonical_ranks
    if type(strands) is not int or strands < 1:
        raise UsageError(f"canonical_ranks must be an int of 1 or more, was {strands!r}")
    if strands % world:
        warnings.warn(
            f"canonical_ranks={strands} cannot be divided among {world} ranks: every row still comes once an epoch, "
            f"but in other batches than on {_listed(_divisors(strands))} ranks",
            ShardCacheWarning,
            stacklevel=3,
        )
        strands = world
    if batch_size is None and strands != world:
        raise UsageError(f"canonical_ranks={strands} needs batch_size: single samples are dealt to {world} ranks")
    rows = (batch_size or 1) * world
    if rows % strands:
        raise UsageError(f"a global batch of {rows} must be a multiple of canonical_ranks ({strands})")
    return BatchShape(batch_size, strands, rows // strands, _remainder(strands, drop_last, remainder))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def warn_of_workers(plan: Plan, workers: int) -> None:
    """A number of workers that divides the lanes gives the same batches as any other such number: say which do."""
    if not plan.is_same_for(workers):
        warnings.warn(
            f"{workers} workers: every row still comes once an epoch, but the batches come in another order than with "
            f"{_listed(_divisors(LANES))} workers, which all give the same",
            ShardCacheWarning,
            stacklevel=3,
        )


def _remainder(strands: int, drop_last: bool, remainder: str | None) -> str:
    """The default goes by the canonical ranks, as it decides about the batches: other world sizes see the same."""
    if remainder not in (None, "drop", "pad", "keep"):
        raise UsageError(f"remainder must be 'drop', 'pad' or 'keep', was {remainder!r}")
    if drop_last and remainder in ("pad", "keep"):
        raise UsageError(f"drop_last=True contradicts remainder={remainder!r}: leave one of them out")
    return remainder or ("drop" if drop_last else "pad" if strands > 1 else "keep")


def epoch_order(
    geometry: Geometry,
    one: float,
    shape: BatchShape,
    order: str,
    shuffle_buffer: int | str | None,
    seed: int,
    epoch: int,
) -> Order:
    """The order of an epoch: a full permutation where it fits a quarter of the buffer, lanes otherwise.

    ``one`` is the number of decoded bytes of a row. In a view a block brings rows that nobody wants; they count too.
    """
    if order != "shuffled":
        return Order(order, seed, epoch, shape.share, shape.strands, 0, shape.remainder)
    rows = geometry.block_rows
    if shuffle_buffer is None:
        limit = DEFAULT_BUFFER_BYTES / one
    else:
        limit = parse_bytes(shuffle_buffer) / one if isinstance(shuffle_buffer, str) else shuffle_buffer
    limit *= rows / geometry.rows_per_block
    if geometry.rows <= limit / 4:
        return Order("full", seed, epoch, shape.share, shape.strands, 0, shape.remainder)
    span = int(limit / LANES)
    if shuffle_buffer is None:
        span = min(span, _default_span(rows, shape))
    if geometry.rows_per_block == 1:
        span = 0  # nothing to part
    return Order("lanes", seed, epoch, shape.share, shape.strands, span, shape.remainder)


def _default_span(rows_per_block: float, shape: BatchShape) -> int:
    """How far the rows of a block must spread so that few of them meet again in the next epoch's batches."""
    if shape.batch_size is None:
        return math.ceil(rows_per_block)
    share = shape.share
    spread = max(_MIN_SPREAD, math.sqrt(_KEPT_MATES * rows_per_block / (share * shape.strands)))
    return math.ceil(spread * share)


def slots(plan: Plan, owned_lanes: int, owned_strands: int, rows_at_once: int) -> int:
    """How many blocks a worker's buffer holds: for each strand its span and two blocks, and what one batch touches."""
    order, per_block = plan.order, plan.geometry.rows_per_block
    if order.kind == "full":
        return int(plan.geometry.blocks)
    if order.kind != "lanes":
        return max(2, min(plan.geometry.blocks, 2 * -(-rows_at_once // per_block) + 2, 64))
    strands = owned_lanes * owned_strands
    rows = plan.geometry.block_rows
    if not plan.geometry.is_even:
        rows /= 1.5  # blocks that bring few rows come in runs
    live = math.ceil(order.span / rows) + 2 if per_block > 1 else 0
    laps = -(-plan.steps * plan.global_batch // plan.geometry.rows)  # more than one where rows fill up a batch
    visits = max(1, laps) * plan.geometry.blocks + 2 * strands
    ends = 2 * owned_strands * max(1, laps)  # parts of blocks, of which a batch may touch more
    return min(strands * live + math.ceil(rows_at_once / rows) + ends, visits)


def warn_of_source_order(manifest: Manifest, batch_rows: int) -> None:
    """Source order on a shuffled layout decodes a block for nearly every sample: say so (less in small windows)."""
    blocks = manifest.blocks
    if manifest.layout == "window" and isinstance(manifest.window, int):
        blocks = min(blocks, max(1, round(manifest.window / manifest.rows_per_block)))
    touched = blocks * (1 - (1 - 1 / blocks) ** batch_rows)
    factor = touched * manifest.rows_per_block / batch_rows
    if factor > 2:
        warnings.warn(
            f"source order on a cache of {manifest.layout} layout decodes about {factor:.0f} times as many rows as it "
            "yields; build the cache with layout='source', or read it with order='stored', each row once in the "
            "cheapest order",
            ShardCacheWarning,
            stacklevel=3,
        )
