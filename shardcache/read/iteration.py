"""Between a dataset and what iterates it: torch's DataLoader, and what it does with errors."""

import sys
import warnings
from collections.abc import Iterator
from typing import Any

from shardcache.errors import ShardCacheWarning, UsageError


class Iteration(Iterator[Any]):
    """An iterator that, once it has raised, raises the same again.

    A generator that raised is finished. A consumer that catches the error and goes on would lose the rest of this worker's
    epoch in silence.
    """

    def __init__(self, values: Iterator[Any]) -> None:
        self._values = values
        self._error: Exception | None = None

    def __next__(self) -> Any:
        if self._error is not None:
            raise self._error
        try:
            return next(self._values)
        except StopIteration:
            raise
        except Exception as error:
            self._error = error
            raise


def check_caller(batch_size: int | None) -> None:
    """Catch a DataLoader that would make batches of what are batches already, or short batches of samples.

    The DataLoader's fetcher for iterable datasets calls ``iter(dataset)``; whether it collates is an attribute of it.
    """
    frame = sys._getframe(2)
    fetcher = frame.f_locals.get("self")
    if "torch" not in frame.f_globals.get("__name__", "") or not getattr(fetcher, "auto_collation", False):
        return
    if batch_size is not None:
        raise UsageError(
            f"CachedDataset(batch_size={batch_size}) yields batches, and this DataLoader would batch them again (a batch_size "
            "in both places, or the DataLoader's default of 1): write DataLoader(ds, batch_size=None), or ds.loader()"
        )
    warnings.warn(
        "this DataLoader makes batches of single samples: each worker ends with a short one, and samples are collated one by "
        "one; CachedDataset(batch_size=...) with DataLoader(ds, batch_size=None) does neither",
        ShardCacheWarning,
        stacklevel=3,
    )
