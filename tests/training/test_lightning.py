"""Lightning: a loader of ours is told the epoch, and its state is in the checkpoints, with no code of the user's."""

import logging
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from shardcache import Cache, CachedDataset, Loader
from tests.training.conftest import CacheOf
from tests.training.test_resume import epoch_of, loader_of

pytestmark = [  # Lightning's own
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty"),
]

STEPS = 13  # of an epoch
EPOCHS = 3


@pytest.fixture(scope="module")
def cache(numbers_of: CacheOf) -> Cache:
    return numbers_of(200)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "lightning.pytorch")


class Data(lightning.LightningDataModule):
    def __init__(self, cache: Cache, workers: int) -> None:
        super().__init__()
        self.cache, self.workers = cache, workers

    def train_dataloader(self) -> Loader:
        return loader_of(self.cache, self.workers, self.workers > 0, batch_size=16)

    def val_dataloader(self) -> Loader:
        return CachedDataset(self.cache, batch_size=64, order="stored").loader()


class Interrupted(Exception):
    """As if the power had failed."""


class Model(lightning.LightningModule):
    """Remembers what it was trained on; fails at a step, if asked to."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.seen: list[Any] = []
        self.fails_at = fails_at
        self.validated = 0

    def training_step(self, batch: Any, number: int) -> Any:
        if self.global_step == self.fails_at:
            raise Interrupted
        index, vectors = batch
        self.seen.append((self.current_epoch, index.tolist()))
        return self.layer(vectors.float()).square().mean()

    def validation_step(self, batch: Any, number: int) -> None:
        self.validated += len(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def fit(model: Model, cache: Cache, folder: Path, saved: dict[str, Any], workers: int = 0, **options: Any) -> Model:
    """Train to the end, from the checkpoint in the folder if there is one."""
    every = ModelCheckpoint(folder, filename="last", enable_version_counter=False, **saved)
    options = {"max_epochs": EPOCHS, "limit_val_batches": 0, **options}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[every],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    last = folder / "last.ckpt"
    trainer.fit(model, datamodule=Data(cache, workers), ckpt_path=str(last) if last.exists() else None)
    return model


def expected(cache: Cache, steps: int = STEPS) -> list[Any]:
    loader = loader_of(cache, batch_size=16)
    return [(epoch, batch) for epoch in range(EPOCHS) for batch in epoch_of(loader, epoch)[:steps]]


EVERY_STEP = {"every_n_train_steps": 1}
EVERY_FIFTH = {"every_n_train_steps": 5}
EVERY_EPOCH = {"every_n_epochs": 1, "save_on_train_epoch_end": True}


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_its_own_order(cache: Cache, tmp_path: Path, workers: int) -> None:
    model = fit(Model(), cache, tmp_path, EVERY_EPOCH, workers, limit_val_batches=None)
    assert model.seen == expected(cache)
    assert model.validated >= EPOCHS * 200  # and what it looks at before


@pytest.mark.parametrize(
    ("saved", "fails_at", "resumed_at"),
    [
        (EVERY_STEP, [1, 12, 14, 30], [1, 12, 14, 30]),
        (EVERY_STEP, [13], [13]),  # between two epochs; Lightning itself miscounts epochs when this happens twice
        (EVERY_STEP, [26], [26]),
        (EVERY_FIFTH, [17, 28], [15, 25]),
        (EVERY_EPOCH, [13, 20, 38], [13, 13, 26]),
    ],
    ids=["every step", "end of an epoch", "end of the next", "every fifth", "every epoch"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_was_interrupted_goes_on_with_the_batches_that_were_left(
    cache: Cache, tmp_path: Path, saved: dict[str, Any], fails_at: list[int], resumed_at: list[int], workers: int
) -> None:
    whole = expected(cache)
    begin = 0
    for fail, resume in zip(fails_at, resumed_at, strict=True):
        model = Model(fail)
        with pytest.raises(Interrupted):
            fit(model, cache, tmp_path, saved, workers)
        assert model.seen == whole[begin:fail]
        begin = resume
    assert fit(Model(), cache, tmp_path, saved, 3 - workers).seen == whole[begin:]


def test_shortened_epochs_too(cache: Cache, tmp_path: Path) -> None:
    whole = expected(cache, 10)
    model = Model(10)
    with pytest.raises(Interrupted):
        fit(model, cache, tmp_path, EVERY_EPOCH, limit_train_batches=10)
    assert model.seen == whole[:10]
    assert fit(Model(), cache, tmp_path, EVERY_EPOCH, limit_train_batches=10).seen == whole[10:]


def test_a_second_fit_goes_on_with_the_epochs_that_come_next(cache: Cache, tmp_path: Path) -> None:
    model, data = Model(), Data(cache, 0)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        limit_val_batches=0,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(model, datamodule=data)
    assert model.seen == expected(cache)
