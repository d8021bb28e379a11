"""``Loader``: the ordinary DataLoader, which counts what it has delivered."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from shardcache.errors import DamagedShardError, UsageError
from shardcache.read import state as states
from shardcache.read.watch import Board

if TYPE_CHECKING:
    from shardcache.read.dataset import CachedDataset


def as_it_is(batch: Any) -> Any:
    """What the dataset yields is a batch already."""
    return batch


def raise_bus_error(error: RuntimeError, batches: Any, board: Board) -> None:
    """Where a worker process died of SIGBUS: :class:`DamagedShardError`, naming the shard that it turned to last.

    torch knows that a worker died, and of those that it lost only the process.
    """
    for process in getattr(batches, "_workers", ()):
        if process.exitcode == -signal.SIGBUS:
            shard = board.shard_of(process.pid)
            where = "a shard" if shard is None else f"shard {shard:05d}"
            raise DamagedShardError(
                f"{where}: worker process {process.pid} died of a bus error after it turned to it: the file was "
                "truncated under its memory map, or its disk fails (run 'shardcache verify'; io='pread' makes of it an "
                "error that a worker survives)"
            ) from error


@dataclass
class _Begun:
    """An iteration: its epoch, and the step that it will deliver next."""

    epoch: int
    step: int
    calls: int  # of a trainer, before


class _TrainersEpoch:
    """``sampler.set_epoch``, which is where Lightning looks for it.

    It is called before each epoch, but for the first one (of a training that goes on with any epoch) after ``iter``.
    """

    def __init__(self, dataset: "CachedDataset") -> None:
        self._dataset, self.calls = dataset, 0

    def __call__(self, epoch: int) -> None:
        self._dataset.set_epoch(epoch)
        self.calls += 1


class _Counted(Iterator[Any]):
    """Counts the batches of an iteration. No generator: one that raised is finished, and would end the epoch early."""

    def __init__(self, batches: Iterator[Any], begun: _Begun, loader: "Loader") -> None:
        self._batches, self._begun, self._board = batches, begun, loader.dataset.board
        self._loader: Loader | None = loader  # until the first batch

    def __next__(self) -> Any:
        loader, self._loader = self._loader, None
        if loader is not None and loader.is_overtaken(self._begun):
            self._batches = iter(loader)
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            raise_bus_error(error, self._batches, self._board)
            raise
        self._begun.step += 1
        return batch


class Loader(DataLoader[Any]):
    """A ``DataLoader`` over a :class:`~shardcache.CachedDataset`, made by its ``loader()``.

    What it adds: ``set_epoch``, and a state that can be saved at any step. It counts the batches that it has
    *delivered*, whatever the workers have read ahead.
    """

    dataset: "CachedDataset"

    def __init__(self, dataset: "CachedDataset", **options: Any) -> None:
        for name in ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"):
            if name in options:
                raise UsageError(f"loader({name}=...): say it to CachedDataset(...); it makes the batches")
        if options.get("in_order") is False:
            raise UsageError(
                "loader(in_order=False) would break the order of batches, and with it every promise about them"
            )
        options.setdefault("collate_fn", as_it_is)
        self._begun: _Begun | None = None  # the iteration that was begun last
        super().__init__(dataset, batch_size=None, **options)
        self._trainers_epoch = vars(self.sampler)["set_epoch"] = _TrainersEpoch(dataset)

    @property
    def skipped(self) -> int:
        """Rows that ``on_corrupt="skip"`` replaced in the iterations of this loader, as its workers read them."""
        return self.dataset.skipped

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with self.dataset.announced() as position:
            begun = self._begun = _Begun(*position, self._trainers_epoch.calls)
            return _Counted(super().__iter__(), begun, self)

    def is_overtaken(self, begun: _Begun) -> bool:
        """Whether a trainer has set another epoch for an iteration, the last one that was begun."""
        is_last, called = self._begun is begun, self._trainers_epoch.calls > begun.calls
        return is_last and called and self.dataset.position[0] != begun.epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the training is: plain values, independent of the number of workers.

        Raises:
            UsageError: the number of workers does not divide 48, and the epoch has begun.
        """
        epoch, step = self.dataset.position
        if self._begun is not None and self._begun.epoch == epoch:  # else set_epoch was called since
            step = self._begun.step
        epoch, step = self.dataset.place(epoch, step)
        if step and not self.dataset.is_same_for(max(1, self.num_workers)):
            raise UsageError(
                f"with {self.num_workers} workers the batches delivered so far are not the first {step} of the epoch, "
                "and nothing could go on from them: use a number of workers that divides 48 to save a state there"
            )
        return {"version": states.VERSION, "epoch": epoch, "step": step, **self.dataset.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration where ``state`` was saved.

        Raises:
            UsageError: the state is of another cache, seed, order or global batch size; the message says which.
        """
        states.check(state, self.dataset.identity(), self.dataset.world_size)
        self.dataset.resume(epoch=state.get("epoch"), step=state.get("step"))  # type: ignore[arg-type]  # checked there
        self._begun = None
