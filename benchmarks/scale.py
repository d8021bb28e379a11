"""What a large cache costs before the first batch is there: to open it, to plan an epoch, to read that batch.

Run: ``python benchmarks/scale.py [--short] [--rounds N] [--json FILE]``. A cache of 10^9 samples is 3 TB, so it is not
written: the builder draws up its plan from samples that are made when they are asked for, and writes, in full, those
shards that the first batch of the epoch has rows in. The manifest names all others too, which are not there. So the
manifest is read, the epoch planned, and each shard verified, mapped and decoded as in a real cache. The content of the
batch is compared with the samples. Rows compress well, so the files are smaller than real ones; how many blocks they
have, which is what opening them costs by, is as it would be.

Each round is a process of its own, which has imported everything before the clock starts. Its memory is what its peak
grew by. Reported are medians; the manifest is in the page cache, and so are the shards.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import shardcache
from shardcache.builder.build import _stamped
from shardcache.builder.probe import Options, draw_up
from shardcache.builder.shards import build_shard
from shardcache.builder.source import Source
from shardcache.format import manifest as manifests
from shardcache.format import spec
from shardcache.format.columns import Form
from shardcache.format.manifest import ColumnTotals, Manifest
from shardcache.format.pages import ShardSeal

ROW_BYTES, BATCH, EPOCH = 3072, 256, 1
STAND_IN = ShardSeal(file_bytes=1 << 20, structure="0" * 32, sha256="0" * 64)


class Samples:
    """Any number of samples, each a function of its index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full(ROW_BYTES, index * 7 % 251, np.uint8), index


def drawn_up(samples: int, shards: int | None) -> Manifest:
    """The plan of a build, of as many shards as are asked for, or as the builder would make."""
    plan = _stamped(draw_up(Source(Samples(samples)), Options(layout="shuffled")))
    if shards is None:
        return plan
    return msgspec.structs.replace(plan, blocks_per_shard=-(-plan.blocks // shards))


def dataset_of(cache: shardcache.Cache) -> shardcache.CachedDataset:
    """What is measured: shuffled batches, with the indices of their samples."""
    dataset = shardcache.CachedDataset(cache, batch_size=BATCH, shuffle=True, with_meta=True)
    dataset.set_epoch(EPOCH)
    return dataset


def write_manifest(plan: Manifest, directory: Path, seals: Sequence[ShardSeal], totals: Sequence[ColumnTotals]) -> None:
    """The manifest of a cache of which some shards are there."""
    whole = msgspec.structs.replace(plan, shards=tuple(seals), totals=tuple(totals))
    (directory / spec.MANIFEST_NAME).write_bytes(manifests.encode(whole))


def make(directory: Path, samples: int, shards: int | None) -> dict[str, int]:
    """A cache of which the first batch can be read."""
    directory.mkdir()
    plan = drawn_up(samples, shards)
    seals = [STAND_IN] * -(-plan.blocks // plan.blocks_per_shard)
    sizes = {"array": ROW_BYTES, "int": 8}
    totals = [
        ColumnTotals((Form.FIXED,), samples * sizes[column.type], samples) if column.type in sizes else ColumnTotals()
        for column in plan.columns
    ]
    write_manifest(plan, directory, seals, totals)
    order = dataset_of(shardcache.open(directory)).order_of(EPOCH)
    rows = shardcache.open(directory).rows_of(next(iter(order)))
    wanted = sorted(set((rows // plan.rows_per_block // plan.blocks_per_shard).tolist()))
    for number in wanted:
        seals[number] = build_shard(Source(Samples(samples)), plan, number, directory, lambda _: None).seal
    write_manifest(plan, directory, seals, totals)
    manifest_bytes = (directory / spec.MANIFEST_NAME).stat().st_size
    return {"shards": len(seals), "written": len(wanted), "blocks": plan.blocks, "manifest_bytes": manifest_bytes}


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def measure(directory: str) -> dict[str, float]:
    """Seconds to open, to plan and to get the first batch, and what memory grew by."""
    before, start = peak(), time.perf_counter()
    cache = shardcache.open(directory)
    opened = time.perf_counter()
    dataset = dataset_of(cache)
    batches = len(dataset)
    planned = time.perf_counter()
    (images, labels), meta = next(iter(dataset))
    read = time.perf_counter()
    grown = peak() - before
    assert batches == -(-len(cache) // BATCH)
    assert torch.equal(labels, meta.index)
    assert len(set(labels.tolist())) == BATCH
    assert torch.equal(images, (labels * 7 % 251).to(torch.uint8)[:, None].expand(BATCH, ROW_BYTES))
    return {
        "open": opened - start,
        "plan": planned - opened,
        "first_batch": read - planned,
        "all": read - start,
        "memory": grown,
    }


def in_a_process(directory: Path) -> dict[str, float]:
    """One round."""
    command = [sys.executable, __file__, "--measure", str(directory)]
    measured: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return measured


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="fewer samples, one round: to see that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    cases: list[tuple[int, int | None]] = [
        *itertools.product((10**6,), (10, None, 10_000)),
        *itertools.product((10**9,), (None, 10_000)),
    ]
    if given.short:
        given.rounds, cases = 1, [(10**5, 1_000), (10**9, 60_000)]
    results = []
    print(f"{'samples':>14} {'shards':>7} {'open':>9} {'plan':>9} {'first batch':>12} {'together':>9} {'memory':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (samples, shards) in enumerate(cases):
            directory = Path(folder) / str(number)
            made = make(directory, samples, shards)
            rounds = [in_a_process(directory) for _ in range(given.rounds)]
            found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
            print(
                f"{samples:14,} {made['shards']:7,} {found['open'] * 1e3:6.1f} ms {found['plan'] * 1e3:6.1f} ms "
                f"{found['first_batch'] * 1e3:9.1f} ms {found['all'] * 1e3:6.1f} ms {found['memory'] / 2**20:6.1f} MiB",
                flush=True,
            )
            results.append({"samples": samples, **made, **found})
    if given.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform()}
        given.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
