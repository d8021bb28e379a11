"""How fast zstd decodes real data, level by level: the table that ``codec="auto"`` decides by.

Run: ``python benchmarks/codecs.py [--images PATTERN] [--rounds N] [--json FILE]``. Blocks are of 128 KiB, as in a
cache; images are photographs of this machine (Debian: ``apt install mate-backgrounds``), or else the two that
scikit-learn brings; text is the source of Python's standard library. One core; the rounds of all kinds and levels are
interleaved, and each figure is of the fastest round. The last table has the medians over what compresses, for
``shardcache/builder/codecs.py``, beside the values in it.
"""

import argparse
import glob
import importlib.util
import json
import statistics
import sysconfig
import time
from pathlib import Path

import numpy as np
from PIL import Image

from shardcache.builder import codecs
from shardcache.format import compression, spec

LEVELS = (-7, -5, -3, -1, 1, 2, 3, 6, 9, 12, 15, 19)
PHOTOGRAPHS = "/usr/share/backgrounds/mate/nature/*.jpg"
BYTES = 8 << 20  # of each kind


def kinds(pattern: str) -> dict[str, bytes]:
    """Real data of several kinds, each as its column would hold it."""
    files = sorted(glob.glob(pattern, recursive=True))
    found = importlib.util.find_spec("sklearn") if pattern == PHOTOGRAPHS and not files else None
    if found and found.origin:
        files = sorted(glob.glob(f"{Path(found.origin).parent}/datasets/images/*.jpg"))
    if not files:
        raise SystemExit(f"no image matches {pattern!r}; --images says where some are")
    photographs = [np.asarray(Image.open(file).convert("RGB")) for file in files[:12]]
    cut = [
        photo[top : top + 32, left : left + 32]
        for photo in photographs
        for top in range(0, photo.shape[0] - 31, 32)
        for left in range(0, photo.shape[1] - 31, 32)
    ]
    mixed = np.random.default_rng(0).permutation(len(cut))[: BYTES // 3072]  # as a shuffled layout mixes them
    patches = b"".join(cut[number].tobytes() for number in mixed)
    scaled = (np.frombuffer(patches[: BYTES // 4], np.uint8).astype(np.float32) - 117.3) / 58.4
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    labels = np.random.default_rng(0).integers(0, 1000, BYTES // 8)
    return {
        "image patches": patches,
        "scaled images, float32": scaled.tobytes(),
        "text": b"".join(file.read_bytes() for file in modules),
        "labels, int64": labels.tobytes(),
        "JPEG": b"".join(Path(file).read_bytes() for file in files),
    }


def blocks(data: bytes) -> list[bytes]:
    size = spec.BLOCK_BYTES
    return [data[start : start + size] for start in range(0, min(len(data), BYTES) - size + 1, size)]


def measure(bodies: dict[str, list[bytes]], rounds: int) -> list[dict[str, object]]:
    """For each kind and level: ratio, bytes of body that one core compresses and decodes in a second."""
    rows: list[dict[str, object]] = []
    stored: dict[tuple[str, int], list[bytes]] = {}
    for kind, raw in bodies.items():
        for level in LEVELS:
            start = time.perf_counter()
            stored[kind, level] = [compression.compress(body, level) for body in raw]
            seconds = time.perf_counter() - start
            total = sum(map(len, raw))
            ratio = total / sum(map(len, stored[kind, level]))
            rows.append({"kind": kind, "level": level, "ratio": ratio, "compress": total / seconds})
    times: dict[tuple[str, int], list[float]] = {key: [] for key in stored}
    out = memoryview(bytearray(spec.BLOCK_BYTES))
    for _ in range(rounds + 1):
        for (kind, level), frames in stored.items():
            start = time.perf_counter()
            for frame in frames:
                compression.decompress_into(frame, out)
            times[kind, level].append(time.perf_counter() - start)
    for row in rows:
        key = str(row["kind"]), int(str(row["level"]))
        row["decode"] = len(stored[key]) * spec.BLOCK_BYTES / min(times[key])
    return rows


def copy_speed(rounds: int) -> float:
    source, target = np.ones(64 << 20, np.uint8), np.empty(64 << 20, np.uint8)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return len(source) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default=PHOTOGRAPHS, metavar="PATTERN", help="photographs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true", help="two blocks of each kind, once: to see that it runs")
    given = parser.parse_args()
    if given.short:
        given.rounds = 1
    few = 2 if given.short else None
    rows = measure({kind: blocks(data)[:few] for kind, data in kinds(given.images).items()}, given.rounds)
    copied = copy_speed(given.rounds)
    print(
        f"zstd {compression.library_version()}, blocks of {spec.BLOCK_BYTES >> 10} KiB; MB/s of raw bytes on one core"
    )
    print(f"{'kind':24} {'level':>5} {'ratio':>6} {'compress':>9} {'decode':>7}")
    for row in rows:
        compress, decode = (float(str(row[name])) / 1e6 for name in ("compress", "decode"))
        print(f"{row['kind']:24} {row['level']:5} {row['ratio']:6.2f} {compress:9,.0f} {decode:7,.0f}")
    print(f"\na copy: {copied / 1e9:.1f} GB/s (in the code: {codecs.COPY_SPEED / 1e9:.1f})")
    print(f"{'level':>5} {'decode, GB/s':>12} {'in the code':>11}")
    table = {}
    for level in LEVELS:
        speeds = [float(str(row["decode"])) for row in rows if row["level"] == level and float(str(row["ratio"])) > 1.1]
        table[level] = statistics.median(speeds)
        known = codecs.DECODE_SPEED.get(level)
        print(f"{level:5} {table[level] / 1e9:12.2f} {'-' if known is None else f'{known / 1e9:.2f}':>11}")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "copy": copied, "table": table}, indent=2))


if __name__ == "__main__":
    main()
