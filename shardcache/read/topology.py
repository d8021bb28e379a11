"""Which rank of how many, and which worker of how many, this process is."""

import os
from numbers import Integral
from typing import NamedTuple

import torch.distributed
from torch.utils.data import get_worker_info

from shardcache.errors import UsageError


class Ranks(NamedTuple):
    """One process of a job that trains one model in ``world_size`` processes."""

    rank: int
    world_size: int


class Worker(NamedTuple):
    """One worker process of a DataLoader, or the training process itself (0 of 1)."""

    number: int
    workers: int
    is_process: bool
    pool: int = 0  # a number that all workers of one iterator of a DataLoader have in common
    sends: bool = False  # what it yields is sent as it is


def ranks(rank: int | None, world_size: int | None) -> Ranks:
    """As given; else from ``torch.distributed``; else from the environment (RANK, WORLD_SIZE); else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise UsageError("rank and world_size go together: give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = _from_environment()
    if not all(isinstance(number, Integral) for number in (rank, world_size)):
        raise UsageError(f"rank and world_size must be ints, were {rank!r} and {world_size!r}")
    if world_size < 1:
        raise UsageError(f"world_size must be 1 or more, was {world_size}")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank must be 0..{world_size - 1} in a world of size {world_size}, was {rank}")
    return Ranks(int(rank), int(world_size))


def check_unchanged(then: Ranks) -> None:
    """:class:`UsageError` where a process group was made after a dataset, which took its process for the only one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    now = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    if now != then:
        raise UsageError(
            f"this dataset was made for rank {then.rank} of {then.world_size}, but this process is rank {now.rank} of "
            f"{now.world_size} now: make the dataset after the process group, or pass rank= and world_size="
        )


def _from_environment() -> tuple[int, int]:
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world_size is None:
        return 0, 1
    try:
        return int(rank), int(world_size)
    except ValueError:
        raise UsageError(
            f"RANK and WORLD_SIZE in the environment must be integers, were {rank!r}, {world_size!r}"
        ) from None


def worker() -> Worker:
    """The worker that this code runs in."""
    info = get_worker_info()
    return Worker(0, 1, False) if info is None else Worker(info.id, info.num_workers, True, info.seed - info.id)
