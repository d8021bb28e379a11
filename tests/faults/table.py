"""The table of faults: what is done to a cache, what must come of it, and how often it is tried."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from tests.faults import (
    exchanged,
    flips,
    full_disk,
    hostile_blocks,
    hostile_manifests,
    io_errors,
    kills,
    leaks,
    lost_writes,
    matrix,
    readonly,
    replaced,
    workers,
)
from tests.faults.figures import Asked, Figures


@dataclass(frozen=True)
class Campaign:
    """A row. ``run`` does the trials; how many ``short`` is for CI, ``long`` for ``tools/torture --long``."""

    name: str
    fault: str
    required: str
    short: int
    long: int
    run: Callable[[Asked], Figures]


def campaign(module: ModuleType) -> Campaign:
    name = module.__name__.rpartition(".")[2]
    return Campaign(name, module.FAULT, module.REQUIRED, module.SHORT, module.LONG, module.run)


CAMPAIGNS = {
    found.name: found
    for found in map(
        campaign,
        [
            flips,
            replaced,
            exchanged,
            kills,
            lost_writes,
            full_disk,
            io_errors,
            workers,
            matrix,
            readonly,
            hostile_manifests,
            hostile_blocks,
            leaks,
        ],
    )
}


@dataclass(frozen=True)
class Row:
    """A campaign that was run."""

    campaign: Campaign
    figures: Figures
    seconds: float


def run(name: str, asked: Asked) -> Row:
    start = time.monotonic()
    figures = CAMPAIGNS[name].run(asked)
    return Row(CAMPAIGNS[name], figures, time.monotonic() - start)
