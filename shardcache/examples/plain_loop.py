"""Train in plain PyTorch, on one process or several; killed at any step, it goes on with the batches that were left.

    python -m shardcache.examples.plain_loop [--out DIR] [--epochs N]
    torchrun --nproc-per-node 2 -m shardcache.examples.plain_loop

Both see the same global batches, and each goes on from the other's checkpoint.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import shardcache
from shardcache.examples import digits


def main(arguments: list[str] | None = None) -> None:
    """Train from the last checkpoint on, and say how well it goes."""
    options = digits.parse("plain_loop", __doc__, arguments)
    if "RANK" in os.environ:  # started by torchrun
        distributed.init_process_group("gloo")
        if distributed.get_rank() == 0:
            digits.parts(options.out)  # builds
        distributed.barrier()
    parts = digits.parts(options.out)
    # The batches are made for four ranks: one, two or four see the same.
    train = shardcache.CachedDataset(parts["train"], global_batch_size=64, canonical_ranks=4, shuffle=True, seed=0)
    loader = train.loader(num_workers=2, persistent_workers=True)
    network = digits.network()
    model = DistributedDataParallel(network) if distributed.is_initialized() else network
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)

    checkpoint = options.out / "plain_loop.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for epoch in range(loader.state_dict()["epoch"], options.epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            state = loader.state_dict()
            if state["step"] % 10 == 0 or state["step"] == len(loader):
                everything = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "loader": state}
                save(everything, checkpoint)
        report = f"epoch {epoch}: {100 * accuracy(network, parts['val']):.1f}% of the digits are read"
        if not distributed.is_initialized() or distributed.get_rank() == 0:
            print(report, flush=True)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def save(state: dict[str, Any], path: Path) -> None:
    """All of it or nothing; the ranks have the same."""
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


def accuracy(network: nn.Module, part: shardcache.Cache) -> float:
    """Ranks have equally many batches, filled up with samples that come again: those are not valid."""
    ds = shardcache.CachedDataset(part, batch_size=100, order="stored", with_meta=True)
    counts = torch.zeros(2)
    for (images, labels), meta in ds.loader():
        right = network(images).argmax(1) == labels
        counts += torch.stack([(right & meta.valid).sum(), meta.valid.sum()])
    if distributed.is_initialized():
        distributed.all_reduce(counts)
    return (counts[0] / counts[1]).item()


if __name__ == "__main__":
    main()
