"""What the processor and its memory allow, and where the time goes between that and an epoch in this process.

The very same blocks, in the order in which an epoch visits them, are copied (``memcpy``), hashed, and decoded by raw
zstd (``decode``; where a column is not compressed it is the copy), each in one loop and in two threads; the same rows
are gathered from one array that holds all of them (``gather``); the order alone is computed (``plan``); all blocks are
read as the library reads them, but into no batch (``read``); and at last the epoch itself, in this process and through
a DataLoader of two workers, with the batch ring and without. All take turns, warm, in several rounds; reported are
medians over the rounds, and medians of the ratios to ``decode`` with one thread in each round.

Run: python benchmarks/limits.py [CACHE ...] [--photographs FOLDER] [--rows N] [--rounds N] [--json FILE]

Without a cache, two are built in a temporary folder (uncompressed, and ``zstd:1``) of 3 KiB patches of the photographs
in a folder: of Debian's ``mate-backgrounds`` if none is named, or else the two that scikit-learn brings. A cache may
have fixed columns only.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from PIL import Image

import shardcache
from shardcache.format import block
from shardcache.format.columns import fixed_row_bytes

SEED, BATCH, EDGE = 0, 256, 32
Run = Callable[[], None]

BACKGROUNDS = Path("/usr/share/backgrounds/mate")


class Patches:
    """Square patches of photographs, uint8 ``[32, 32, 3]``, and the number of the photograph."""

    def __init__(self, folder: Path, count: int) -> None:
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))
        self.images = [np.asarray(Image.open(path).convert("RGB")) for path in files]
        random, areas = np.random.default_rng(SEED), np.array([image.size for image in self.images])
        self.which = random.choice(len(files), count, p=areas / areas.sum())
        self.corners = random.random((count, 2))

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[self.which[index]]
        top, left = (self.corners[index] * (np.array(image.shape[:2]) - EDGE)).astype(int)
        return image[top : top + EDGE, left : left + EDGE].copy(), int(self.which[index])


class Parts:
    """The parts of an epoch of a cache, each by itself."""

    def __init__(self, cache: shardcache.Cache, buffer: int) -> None:
        self.cache, self.manifest, self.buffer = cache, cache.manifest, buffer
        self.dataset = self.epoch_of()
        plan = self.dataset._plan(0)
        reader = plan.reader(0, 1)
        steps = [reader.rows([step]) for step in range(plan.steps)]
        visits: dict[int, int] = {}
        for rows in steps:
            visits.update(zip(rows.visit.tolist(), rows.block.tolist(), strict=True))
        self.visited = list(visits.values())
        self.rows = [rows.block * self.manifest.rows_per_block + rows.offset for rows in steps]
        self.sizes = [fixed_row_bytes(cache.manifest.columns[field.position]) for field in cache.schema]
        self.values = [self._stored(number) for number in self.visited]
        self.table = [np.empty((self.manifest.samples, size), np.uint8) for size in self.sizes]
        for number, values in zip(self.visited, self.values, strict=True):
            start = number * self.manifest.rows_per_block
            for table, value in zip(self.table, values, strict=True):
                out = table[start : start + self.manifest.block_rows(number)].reshape(-1)
                decode(zstandard.ZstdDecompressor(), value, memoryview(out))

    def epoch_of(self, **options: Any) -> shardcache.CachedDataset:
        return shardcache.CachedDataset(
            self.cache, batch_size=BATCH, shuffle=True, seed=SEED, shuffle_buffer=self.buffer, **options
        )

    def _stored(self, number: int) -> list[memoryview]:
        at, local = divmod(number, self.manifest.blocks_per_shard)
        with self.cache.blocks._lease(at) as reader:
            return [reader.get(block.value_key(local, field.position)) for field in self.cache.schema]

    def _memory(self) -> list[memoryview]:
        return [memoryview(np.empty(self.manifest.rows_per_block * size, np.uint8)) for size in self.sizes]

    def memcpy(self, part: slice) -> None:
        out = np.empty(max(len(value) for values in self.values for value in values), np.uint8)
        for values in self.values[part]:
            for value in values:
                np.copyto(out[: len(value)], np.frombuffer(value, np.uint8))

    def hash(self, part: slice) -> None:
        for values in self.values[part]:
            for value in values:
                xxhash.xxh3_64_intdigest(value)

    def decode(self, part: slice) -> None:
        decompressor, memory = zstandard.ZstdDecompressor(), self._memory()
        for values in self.values[part]:
            for value, out in zip(values, memory, strict=True):
                decode(decompressor, value, out)

    def gather(self, part: slice) -> None:
        for rows in self.rows[part]:
            for table in self.table:
                np.take(table.view("u8"), rows, axis=0, mode="clip")

    def read(self, part: slice) -> None:
        memory = self._memory()
        for number in self.visited[part]:
            rows = self.manifest.block_rows(number)
            into = {
                field.position: out[: rows * size]
                for field, out, size in zip(self.cache.schema, memory, self.sizes, strict=True)
            }
            self.cache.blocks.read(number, (), into)

    def plan(self) -> None:
        plan = self.dataset._plan(0)
        reader = plan.reader(0, 1)
        for step in range(plan.steps):
            reader.rows([step])

    def all(self) -> dict[str, Run]:
        """Name -> what to time."""
        runs: dict[str, Run] = {}
        for part in (self.memcpy, self.hash, self.decode, self.gather, self.read):
            runs[part.__name__] = partial(part, slice(None))
            runs[f"{part.__name__}, 2 threads"] = partial(in_two, part)
        runs["plan"] = self.plan
        for threads in (0, 1, 2):
            runs[f"epoch, threads={threads}"] = partial(through, self.epoch_of(threads=threads), count())
        for name, transport in (("2 workers, ring", "auto"), ("2 workers, torch", "torch")):
            loader = self.epoch_of(transport=transport).loader(num_workers=2, persistent_workers=True)
            runs[name] = partial(through, loader, count())
        return runs


def decode(decompressor: Any, value: memoryview, out: memoryview) -> None:
    stored = value[block.PREFIX_BYTES :]
    if value[14]:
        with decompressor.stream_reader(stored) as reader:
            reader.readinto(out)
    else:
        out[: len(stored)] = stored


def in_two(part: Callable[[slice], None]) -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(part, (slice(0, None, 2), slice(1, None, 2))))


def through(batches: Any, epochs: Iterator[int]) -> None:
    batches.set_epoch(next(epochs))
    for _ in batches:
        pass


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(path: Path, buffer: int, rounds: int) -> dict[str, Any]:
    """Of each part: samples a second, microseconds a sample, speed against ``decode``."""
    cache = shardcache.open(path)
    runs = Parts(cache, buffer).all()
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds + 1)][1:]  # the first warms up
    found: dict[str, Any] = {}
    for name in runs:
        middle = statistics.median(of[name] for of in times)
        found[name] = {
            "samples_per_second": cache.manifest.samples / middle,
            "microseconds": middle / cache.manifest.samples * 1e6,
            "of_decode": statistics.median(of["decode"] / of[name] for of in times),
        }
    gains = {
        name: statistics.median(of[one] / of[two] for of in times)
        for name, one, two in (
            ("decode", "decode", "decode, 2 threads"),
            ("read", "read", "read, 2 threads"),
            ("epoch", "epoch, threads=0", "epoch, threads=2"),
            ("ring", "2 workers, torch", "2 workers, ring"),
        )
    }
    return {"samples": cache.manifest.samples, "parts": found, "gains": gains}


def show(path: Path, found: dict[str, Any]) -> None:
    print(f"\n{path.name}: {found['samples']:,} samples\n{'':20} {'samples/s':>12} {'us/sample':>10} {'of decode':>10}")
    for name, of in found["parts"].items():
        print(f"{name:20} {of['samples_per_second']:12,.0f} {of['microseconds']:10.3f} {of['of_decode']:10.2f}")
    parts = {name: of["microseconds"] for name, of in found["parts"].items()}
    rest = parts["epoch, threads=0"] - parts["read"] - parts["gather"] - parts["plan"]
    print(
        f"where the time goes, us/sample: decode {parts['decode']:.2f}, hash and Python of a block "
        f"{parts['read'] - parts['decode']:.2f}, gather {parts['gather']:.2f}, plan {parts['plan']:.2f}, "
        f"rest {rest:.2f}"
    )
    gains = {name: f"{gain:.2f}" for name, gain in found["gains"].items()}
    print(f"two threads against one: decode {gains['decode']}, read {gains['read']}, epoch {gains['epoch']}")
    print(f"two workers, the batch ring against the DataLoader's transport: {gains['ring']}")


def photographs_here() -> Path:
    found = importlib.util.find_spec("sklearn")
    if BACKGROUNDS.is_dir() or found is None or found.origin is None:
        return BACKGROUNDS
    return Path(found.origin).parent / "datasets/images"


@contextmanager
def caches(named: list[Path], photographs: Path, rows: int) -> Iterator[list[Path]]:
    if named:
        yield named
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Patches(photographs, rows)
        for codec in ("none", "zstd:1"):
            shardcache.build(source, Path(folder, codec), codec=codec)
        yield [Path(folder, "none"), Path(folder, "zstd:1")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="*", type=Path, metavar="CACHE")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", type=int, default=200_000, help="patches to build of the photographs")
    parser.add_argument("--buffer", type=int, default=8192, help="the shuffle buffer, in rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true", help="little of everything: to see that it runs")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.rows, arguments.rounds = 4000, 1
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "machine": platform.platform(),
        "seed": SEED,
    }
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    results = {}
    with caches(arguments.caches, arguments.photographs or photographs_here(), arguments.rows) as paths:
        for path in paths:
            results[path.name] = measure(path, arguments.buffer, arguments.rounds)
            show(path, results[path.name])
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
