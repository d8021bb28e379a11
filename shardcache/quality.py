"""How well an order shuffles, against a full shuffle of the same samples.

Three measures, each from the plan alone; of the data only labels are read, where they are asked for:

* *label deviation*: chi-square of the label counts of a batch over its expectation, averaged over batches; 1.0 is what
  independent draws give.
* *displacement*: how far a sample comes from its place in the source, as a share of the epoch, averaged; 1/3 is random.
* *kept mates*: the share of a sample's batch-mates that it meets again in the next epoch's batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shardcache.errors import UsageError
from shardcache.format.permutation import Integers
from shardcache.read import views
from shardcache.read.dataset import CachedDataset


@dataclass(frozen=True)
class Quality:
    """The measures of an order; ``label_deviation`` is None without labels."""

    label_deviation: float | None
    displacement: float
    kept_mates: float


def shuffle_quality(dataset: CachedDataset, label: str | None = None) -> tuple[Quality, Quality]:
    """(what this dataset's order reaches, what a full shuffle reaches), over two epochs; ``label`` names a column."""
    cache = dataset.cache
    if dataset.batch_size is None:
        raise UsageError("the quality of a shuffle is measured in batches: give the dataset a batch_size")
    labels = None
    if label is not None:
        found = np.asarray(views.values(cache, [label])[0])
        _, labels = np.unique(found, return_inverse=True)
    sources = cache.indices_of(cache.rows_of(np.arange(len(cache))))
    places = np.empty(int(sources.max()) + 1, np.int64)
    places[sources] = np.arange(len(cache))
    ours = [[places[index] for index in dataset.order_of(epoch)] for epoch in (0, 1)]
    full = []
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(len(cache))
        full.append(np.split(order, np.cumsum([len(batch) for batch in ours[0]])[:-1]))
    return _measured(ours, labels), _measured(full, labels)


def _measured(epochs: list[list[Integers]], labels: Any) -> Quality:
    deviation = None if labels is None else label_deviation(epochs[0], labels)
    return Quality(deviation, displacement(epochs[0]), kept_mates(*epochs))


def label_deviation(batches: list[Integers], labels: Integers) -> float:
    """Mean chi-square of the whole batches' label counts over the number of degrees of freedom."""
    shares = np.bincount(labels) / len(labels)
    size = len(batches[0])
    counts = [np.bincount(labels[batch], minlength=len(shares)) for batch in batches if len(batch) == size]
    expected = shares * size
    chi = ((np.array(counts) - expected) ** 2 / expected).sum(axis=1)
    return float(chi.mean() / max(1, len(shares) - 1))


def displacement(batches: list[Integers]) -> float:
    """Mean distance between a sample's place in the source and in the epoch, over the length of the epoch."""
    order = np.concatenate(batches)
    return float(np.abs(order - np.arange(len(order))).mean() / len(order))


def kept_mates(first: list[Integers], second: list[Integers]) -> float:
    """The share of pairs that are in one batch in both epochs, of those that are in the first."""
    length = 1 + max(int(batch.max()) for batch in [*first, *second])
    batch_of = np.full((2, length), -1, np.int64)
    for row, batches in zip(batch_of, (first, second), strict=True):
        for number, batch in enumerate(batches):
            row[batch] = number
    both = batch_of[:, (batch_of >= 0).all(axis=0)]
    _, together = np.unique(both[0] * len(second) + both[1], return_counts=True)
    before = np.bincount(both[0])
    return float((together * (together - 1)).sum() / max(1, (before * (before - 1)).sum()))
