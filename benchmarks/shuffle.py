"""How well batches are mixed: label deviation and kept batch-mates, against a full shuffle, on a class-sorted source.

Run: ``python benchmarks/shuffle.py [--json FILE]``. It needs no data: orders are computed for caches that are never
written, from the same plan that readers use. Figures are deterministic.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from shardcache import quality
from shardcache.builder.probe import blocks_per_shard, rows_per_block
from shardcache.format.manifest import layout_permutation
from shardcache.read import settings, topology
from shardcache.read.geometry import Geometry
from shardcache.read.plan import Plan

CLASSES = 100


def batches(samples: int, row_bytes: int, batch: int, buffer: Any, layout: str, epoch: int) -> list[Any]:
    """The source indices of each batch of an epoch, shuffled, of a cache of these samples."""
    per_block = rows_per_block(samples, row_bytes, None)
    geometry = Geometry(samples, per_block, blocks_per_shard(samples, per_block, row_bytes))
    shape = settings.batch_shape(topology.Ranks(0, 1), batch, None, None, False, None)
    order = settings.epoch_order(geometry, row_bytes, shape, "shuffled", buffer, 0, epoch)
    plan = Plan(geometry, order)
    reader, permutation = plan.reader(0, 1), layout_permutation(samples, 0)
    found = []
    for step in plan.worker_steps(0, 1):
        rows = reader.rows([step])
        stored = rows.block * per_block + rows.offset
        found.append(permutation.forward(stored) if layout == "shuffled" else stored)
    return found


def full(samples: int, batch: int, seed: int) -> list[Any]:
    """A full shuffle."""
    order = np.random.default_rng(seed).permutation(samples)
    return np.split(order, np.arange(batch, samples, batch))


def cases() -> Iterator[dict[str, Any]]:
    """Every row of the table."""
    for samples in (2_000, 20_000, 200_000, 1_000_000):
        for row_bytes in (8, 1_000, 3_080, 16_384):
            for batch in (64, 256, 1_024):
                yield {"samples": samples, "row_bytes": row_bytes, "batch": batch, "buffer": None, "layout": "shuffled"}
    for buffer in (512, 8_192, 65_536):
        for layout in ("shuffled", "source"):
            yield {"samples": 200_000, "row_bytes": 3_080, "batch": 256, "buffer": buffer, "layout": layout}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The figures of a case beside those of a full shuffle."""
    samples, batch = case["samples"], case["batch"]
    labels = np.arange(samples) * CLASSES // samples
    ours = [batches(epoch=epoch, **case) for epoch in (0, 1)]
    ideal = [full(samples, batch, seed) for seed in (0, 1)]
    figures = {}
    for name, (first, second) in (("ours", ours), ("full", ideal)):
        figures[name] = {
            "label_deviation": quality.label_deviation(first, labels),
            "displacement": quality.displacement(first),
            "kept_mates": quality.kept_mates(first, second),
        }
    return {**case, **figures}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--short", action="store_true", help="little of everything: to see that it runs")
    options = parser.parse_args()
    print(
        f"{'samples':>9} {'bytes':>6} {'batch':>5} {'buffer':>7} {'layout':>8}   deviation (full)   kept mates (full)"
    )
    results = []
    for case in list(cases())[: 3 if options.short else None]:
        results.append(found := measure(case))
        a, b = found["ours"], found["full"]
        print(
            f"{case['samples']:>9,} {case['row_bytes']:>6,} {case['batch']:>5} {case['buffer'] or 'default':>7} "
            f"{case['layout']:>8}   {a['label_deviation']:9.3f} ({b['label_deviation']:.3f})   "
            f"{a['kept_mates']:10.4f} ({b['kept_mates']:.4f})"
        )
        sys.stdout.flush()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
