"""What the training loops of this folder have in common: data, model, options.

The data are scikit-learn's 1,797 handwritten digits, 8 x 8 pixels each, which come with it.
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import Dataset

import shardcache


class Digits(Dataset[tuple[Tensor, int]]):
    """(image, float32 [64]; the digit)."""

    def __init__(self) -> None:
        images, self.labels = load_digits(return_X_y=True)
        self.images = torch.from_numpy(images).float() / 16

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def parts(out: Path) -> dict[str, shardcache.Cache]:
    """A view to train with and one to evaluate on, the same in every run; the cache is built in the first."""
    cache = shardcache.build(Digits, out / "cache", if_exists="open", progress=False)
    return cache.split({"train": 0.8, "val": 0.2}, stratify="1")


def network() -> nn.Module:
    """Images -> scores of the ten digits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def parse(name: str, about: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """``--out`` and ``--epochs``."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        prog=f"python -m shardcache.examples.{name}", description=(about or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=caches / "shardcache" / "digits", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    return parser.parse_args(arguments)
