"""Train with Lightning; interrupted at any step, it goes on with the batches that were left.

    python -m shardcache.examples.lightning_module [--out DIR] [--epochs N]

Nothing is needed but ``ds.loader()``: Lightning tells it the epoch, and keeps its state in the checkpoints.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import shardcache
from shardcache.examples import digits


class DigitsData(lightning.LightningDataModule):
    """Its datasets are made in the hooks that return loaders: by then every process knows its rank."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out

    def prepare_data(self) -> None:
        digits.parts(self.out)  # builds; in one process only

    def train_dataloader(self) -> shardcache.Loader:
        ds = shardcache.CachedDataset(digits.parts(self.out)["train"], batch_size=32, shuffle=True, seed=0)
        return ds.loader(num_workers=2, persistent_workers=True)

    def val_dataloader(self) -> shardcache.Loader:
        part = digits.parts(self.out)["val"]
        return shardcache.CachedDataset(part, batch_size=100, order="stored", with_meta=True).loader()


class Reader(lightning.LightningModule):
    """Reads digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = digits.network()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:  # noqa: ARG002
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Any, number: int) -> None:  # noqa: ARG002
        (images, labels), meta = batch  # several ranks: some rows come again to fill a batch, and are not valid
        right = self.network(images).argmax(1) == labels
        self.counts += torch.stack([(right & meta.valid).sum(), meta.valid.sum()])

    def on_validation_epoch_end(self) -> None:
        right, count = self.trainer.strategy.reduce(self.counts, reduce_op="sum").tolist()
        self.print(f"epoch {self.current_epoch}: {100 * right / count:.1f}% of the digits are read")


def main(arguments: list[str] | None = None) -> None:
    """Train from the last checkpoint on."""
    options = digits.parse("lightning_module", __doc__, arguments)
    every = ModelCheckpoint(options.out, filename="lightning", every_n_train_steps=10, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=options.epochs, callbacks=[every], logger=False, num_sanity_val_steps=0, enable_progress_bar=False
    )
    last = options.out / "lightning.ckpt"
    trainer.fit(Reader(), datamodule=DigitsData(options.out), ckpt_path=str(last) if last.exists() else None)


if __name__ == "__main__":
    main()
