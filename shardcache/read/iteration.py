"""Between a dataset and what iterates it: torch's DataLoader, and what it does with errors."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from torch.utils.data import default_convert

from shardcache.errors import ShardCacheWarning, UsageError
from shardcache.read.loader import as_it_is


class Iteration(Iterator[Any]):
    """What iterates a dataset in one worker: ``run(epoch, start, skip)`` gives its values.

    They begin at step ``start`` of an epoch, without the first ``skip`` of them.

    Once it has raised, it raises the same again. A generator that raised is finished, and a consumer that catches the
    error and goes on would lose the rest of this worker's epoch in silence.

    Its state is for loaders that keep the state of each worker (torchdata's ``StatefulDataLoader``). ``identity`` says
    what else the values are a function of: a state of anything else is refused.
    """

    def __init__(
        self, run: Callable[[int, int, int], Iterator[Any]], epoch: int, start: int, identity: Mapping[str, Any]
    ) -> None:
        self._run, self._identity = run, identity
        self._begin(epoch, start, 0)

    def _begin(self, epoch: int, start: int, skip: int) -> None:
        self._epoch, self._start, self._yielded = epoch, start, skip
        self._values = self._run(epoch, start, skip)
        self._error: Exception | None = None
        self._traceback: TracebackType | None = None

    def __next__(self) -> Any:
        if self._error is not None:
            raise self._error.with_traceback(self._traceback)  # else it would grow with every time
        try:
            value = next(self._values)
        except StopIteration:
            raise
        except Exception as error:
            self._error, self._traceback = error, error.__traceback__
            raise
        self._yielded += 1
        return value

    def state_dict(self) -> dict[str, Any]:
        """How much this worker has yielded, and of what."""
        return {"epoch": self._epoch, "start": self._start, "yielded": self._yielded, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another iteration was, in its epoch; nothing that it yielded is read again."""
        for name, now in self._identity.items():
            if state.get(name) != now:
                raise UsageError(f"this state was saved with {name}={state.get(name)!r}; now it is {now!r}")
        self._begin(state["epoch"], state["start"], state["yielded"])


def check_accelerate(world_size: int) -> None:
    """Accelerate's prepared loaders deal an iterable dataset out to the ranks, which ours has done already."""
    if world_size == 1 or "accelerate.data_loader" not in sys.modules:
        return
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "accelerate.data_loader":
        frame = frame.f_back
    if frame is not None:
        warnings.warn(
            "accelerator.prepare(loader) divides the batches among the ranks a second time: this dataset already "
            f"gives each of {world_size} ranks its own. Prepare the model and the optimizer, not the loader",
            ShardCacheWarning,
            stacklevel=3,
        )


def check_caller(batch_size: int | None) -> bool:
    """Catch a DataLoader that would make batches of what are batches already, or short batches of samples.

    Returns whether the caller is a DataLoader's fetcher, which hands on as they are what it gets.

    The DataLoader's fetcher for iterable datasets calls ``iter(dataset)``; whether it collates is an attribute of it.
    Where it does not, its default would make lists of tuples and refuse dates: ours are to arrive as they are.
    """
    frame = sys._getframe(2)
    fetcher: Any = frame.f_locals.get("self")
    if "torch" not in frame.f_globals.get("__name__", "") or not hasattr(fetcher, "auto_collation"):
        return False
    if not fetcher.auto_collation:
        if fetcher.collate_fn is default_convert:
            fetcher.collate_fn = as_it_is
        return fetcher.collate_fn is as_it_is
    if batch_size is not None:
        raise UsageError(
            f"CachedDataset(batch_size={batch_size}) yields batches, and this DataLoader would batch them again (a "
            "batch_size in both places, or the DataLoader's default of 1): write DataLoader(ds, batch_size=None) "
            "or ds.loader()"
        )
    warnings.warn(
        "this DataLoader makes batches of single samples: each worker ends with a short one, and samples are collated "
        "one by one; CachedDataset(batch_size=...) with DataLoader(ds, batch_size=None) does neither",
        ShardCacheWarning,
        stacklevel=3,
    )
    return False
