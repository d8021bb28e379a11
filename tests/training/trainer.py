"""A training that saves its state as it goes. Its model is the list of the batches that it was trained on."""

import json
import os
import time
from pathlib import Path
from typing import Any

import shardcache
from shardcache import CachedDataset, Loader
from tests.training.processes import as_any_other

GLOBAL_BATCH, RANKS, SEED = 32, 4, 5


def loaders(
    cache: shardcache.Cache | str, world_size: int, workers: int, *, persistent: bool = False, **options: Any
) -> list[Loader]:
    """The loader of each rank of a job, which may have any number of ranks that divides four."""
    options = {"shuffle": True, "seed": SEED, "global_batch_size": GLOBAL_BATCH, "canonical_ranks": RANKS, **options}
    return [
        CachedDataset(cache, rank=rank, world_size=world_size, **options).loader(
            num_workers=workers, persistent_workers=persistent and workers > 0
        )
        for rank in range(world_size)
    ]


def train(
    path: str,
    checkpoint: Path,
    epochs: int,
    world_size: int,
    workers: int,
    options: dict[str, Any],
    progress: Any,
    is_doomed: bool,
) -> None:
    """Train from where the checkpoint is; the ranks of a job go in step, as they do where gradients are exchanged.

    One that is to be killed never ends by itself, however late the kill is.
    """
    as_any_other()
    ranks = loaders(path, world_size, workers, **options)
    seen: list[Any] = []
    if checkpoint.exists():
        saved = json.loads(checkpoint.read_text())
        seen = saved["seen"]
        for loader in ranks:
            loader.load_state_dict(saved["loader"])
    for epoch in range(ranks[0].state_dict()["epoch"], epochs):
        for loader in ranks:
            loader.set_epoch(epoch)
        for batches in zip(*ranks, strict=True):
            seen.append([epoch, [index for batch in batches for index in batch[0].tolist()]])
            if len(seen) % 3 == 0:
                save(checkpoint, seen, ranks[0])
            progress.value = len(seen)
            time.sleep(0.002)
    while is_doomed:
        time.sleep(1)
    save(checkpoint, seen, ranks[0])


def save(checkpoint: Path, seen: list[Any], loader: Loader) -> None:
    """Model and position become one checkpoint or none."""
    beside = checkpoint.with_suffix(".part")
    beside.write_text(json.dumps({"seen": seen, "loader": loader.state_dict()}))
    os.replace(beside, checkpoint)
