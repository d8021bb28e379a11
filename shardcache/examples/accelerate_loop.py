"""Train with Accelerate, which prepares the model and the optimizer, but not the loader.

    accelerate launch --cpu --num_processes 2 -m shardcache.examples.accelerate_loop [--out DIR] [--epochs N]

The dataset gives each rank its own batches. ``accelerator.prepare(loader)`` would divide them a second time.
"""

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import nn

import shardcache
from shardcache.examples import digits


def main(arguments: list[str] | None = None) -> None:
    """Train from the last checkpoint on, and say how well it goes."""
    options = digits.parse("accelerate_loop", __doc__, arguments)
    accelerator = Accelerator(cpu=True)
    with accelerator.main_process_first():
        parts = digits.parts(options.out)
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    train = shardcache.CachedDataset(parts["train"], batch_size=32, shuffle=True, seed=0, **ranks)
    loader = train.loader(num_workers=2, persistent_workers=True)
    network = digits.network()
    model, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), lr=5e-3))

    accelerator.register_for_checkpointing(loader)  # save_state() and load_state() take its state along
    checkpoint = options.out / "accelerate_loop"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    for epoch in range(loader.state_dict()["epoch"], options.epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            images, labels = images.to(accelerator.device), labels.to(accelerator.device)
            accelerator.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state(str(checkpoint))
        val = shardcache.CachedDataset(parts["val"], batch_size=100, order="stored", with_meta=True, **ranks)
        share = accuracy(accelerator, model, val)
        accelerator.print(f"epoch {epoch}: {100 * share:.1f}% of the digits are read")
    accelerator.end_training()


def accuracy(accelerator: Accelerator, model: nn.Module, ds: shardcache.CachedDataset) -> float:
    """Ranks have equally many batches, filled up with samples that come again: those are not valid."""
    counts = torch.zeros(2, device=accelerator.device)
    for (images, labels), meta in ds.loader():
        hits = model(images.to(accelerator.device)).argmax(1).cpu() == labels
        counts += torch.stack([(hits & meta.valid).sum(), meta.valid.sum()]).to(accelerator.device)
    right, count = accelerator.reduce(counts).tolist()
    return float(right / count)


if __name__ == "__main__":
    main()
