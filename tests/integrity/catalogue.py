"""Every way in which a cache can be wrong: how it gets so, the error, and what the error says.

The table in CONTRIBUTING.md is made from this one: ``python -m tests.integrity.catalogue`` writes it there.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xxhash

from shardcache.errors import (
    CacheNotFoundError,
    DamagedBlockError,
    DamagedShardError,
    FormatVersionError,
    ManifestError,
    MissingShardError,
    ShardCacheError,
)
from shardcache.format import block, manifest, pages, shard, spec
from shardcache.format.block import Place
from shardcache.format.manifest import Skipped

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
START, END = "<!-- tests/integrity/catalogue.py writes this table -->\n", "<!-- up to here -->\n"

Damage = Callable[[Path], object]


class Fault(NamedTuple):
    """One way to be wrong; ``…`` in ``says`` stands for what differs from case to case."""

    what: str
    error: type[ShardCacheError]
    says: str
    damage: Damage

    @property
    def pattern(self) -> str:
        return ".*".join(map(re.escape, self.says.split("…")))


def first(path: Path) -> Path:
    return path / spec.shard_name(0)


def manifest_of(path: Path) -> Path:
    return path / spec.MANIFEST_NAME


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def patched(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def resealed(path: Path, **changes: object) -> None:
    """A manifest that says something else, with a digest that fits."""
    manifest_of(path).write_bytes(manifest.encode(msgspec.structs.replace(manifest.read(path), **changes)))


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same for what no manifest of ours could say."""
    value = json.loads(manifest_of(path).read_text())
    change(value)
    del value["digest"]
    value["digest"] = ""  # last
    blank = json.dumps(value, separators=(",", ":")).encode()
    digest = hashlib.sha256(blank).hexdigest().encode()
    manifest_of(path).write_bytes(blank[:-2] + digest + blank[-2:])


def rewritten(path: Path, change: Callable[[dict[bytes, bytes]], object]) -> None:
    """The first shard, made anew of other values, with a seal that fits."""
    data = first(path).read_bytes()
    with first(path).open("rb") as file:
        found = {key: data[at : at + size] for key, at, size in pages.values(file.fileno(), len(data), "a shard")}
    change(found)
    first(path).unlink()
    with shard.ShardWriter(first(path)) as writer:
        for key, value in sorted(found.items()):
            writer.put(key, value)
        seal = writer.finish()
    resealed(path, shards=(seal, *manifest.read(path).shards[1:]))


def with_value(path: Path, key: bytes, value: bytes) -> None:
    rewritten(path, lambda values: values.update({key: value}))


def with_body(path: Path, key: bytes, body: bytes, level: int | None = None) -> None:
    """Another body, whose checksum is right: a cache that was made by somebody, or by a bug."""
    place = Place(bytes.fromhex(manifest.read(path).cache_id), 0, key)
    with_value(path, key, bytes(block.seal(body, level, place)))


def with_prefix(path: Path, key: bytes, size: int, codec: int, stored: bytes) -> None:
    """A value whose prefix lies, with a checksum that fits."""

    place = Place(bytes.fromhex(manifest.read(path).cache_id), 0, key)
    rest = size.to_bytes(6, "little") + bytes([codec, 0]) + stored
    with_value(path, key, xxhash.xxh3_64_intdigest(rest, seed=place.seed()).to_bytes(8, "little") + rest)


def flipped_value(path: Path) -> None:
    with first(path).open("rb") as file:
        _, at, size = next(
            found for found in pages.values(file.fileno(), first(path).stat().st_size, "a shard") if found[2] > 5000
        )
    patched(first(path), at + size // 2, bytes([first(path).read_bytes()[at + size // 2] ^ 1]))


def swapped(values: dict[bytes, bytes], one: bytes, other: bytes) -> None:
    values[one], values[other] = values[other], values[one]


NOISE = block.value_key(0, 1)
LABEL = block.value_key(0, 2)
FRAME = b"\x28\xb5\x2f\xfd\x60\x00\x10" + b"\x00" * 40

FAULTS = [
    Fault("no directory", CacheNotFoundError, "not a cache (no such directory)", shutil.rmtree),
    Fault(
        "no manifest", CacheNotFoundError, "not a cache (it has no manifest.json)", lambda p: manifest_of(p).unlink()
    ),
    Fault(
        "the manifest is a link, a directory, a pipe, ...",
        ManifestError,
        "must be a regular file, is a symbolic link",
        lambda p: replaced(manifest_of(p), lambda file: file.symlink_to("/dev/zero")),
    ),
    Fault(
        "the manifest is empty",
        ManifestError,
        "is not the JSON of a manifest: …",
        lambda p: manifest_of(p).write_bytes(b""),
    ),
    Fault(
        "the manifest is cut short",
        ManifestError,
        "is not the JSON of a manifest: …",
        lambda p: os.truncate(manifest_of(p), manifest_of(p).stat().st_size // 2),
    ),
    Fault(
        "a byte of the manifest differs",
        ManifestError,
        "its digest does not fit its content",
        lambda p: manifest_of(p).write_bytes(manifest_of(p).read_bytes().replace(b'"seed":0', b'"seed":1')),
    ),
    Fault(
        "nested without end",
        ManifestError,
        "is not the JSON of a manifest: …",
        lambda p: manifest_of(p).write_bytes(b"[" * 100_000),
    ),
    Fault("of another program", ManifestError, "'format' must be 'shardcache'", lambda p: resealed(p, format="other")),
    Fault(
        "of a later format",
        FormatVersionError,
        "written in format version 2; this shardcache reads version 1: a newer shardcache is needed",
        lambda p: resealed(p, version=2),
    ),
    Fault(
        "of the other byte order",
        FormatVersionError,
        "byte order must be 'little', was 'big'",
        lambda p: resealed(p, byte_order="big"),
    ),
    Fault(
        "of a page size that LMDB does not have",
        ManifestError,
        "'page_bytes' must be a power of two, 512..32768, was 65536",
        lambda p: resealed(p, page_bytes=65536),
    ),
    Fault(
        "a field that this version does not know",
        ManifestError,
        "unknown field `path`",
        lambda p: edited(p, lambda value: value.update(path="/etc/passwd")),
    ),
    Fault(
        "a number of the wrong type",
        ManifestError,
        "Expected `int`",
        lambda p: edited(p, lambda value: value.update(samples="160")),
    ),
    Fault(
        "a number out of its range",
        ManifestError,
        "'samples' must be 1..…, was -1",
        lambda p: edited(p, lambda value: value.update(samples=-1)),
    ),
    Fault(
        "more or fewer shards than the rows need",
        ManifestError,
        "'shards' must have … entries, has 1",
        lambda p: resealed(p, shards=manifest.read(p).shards[:1]),
    ),
    Fault(
        "a window without the layout of that name",
        ManifestError,
        "'window' must be there with layout 'window' and no other",
        lambda p: resealed(p, window=4),
    ),
    Fault(
        "more skipped rows than there are rows",
        ManifestError,
        "'skipped' must have a count of 1..159, was 160",
        lambda p: resealed(p, skipped=Skipped(160, "AA==")),
    ),
    Fault(
        "skipped rows that nobody can read",
        ManifestError,
        "'skipped' has no list of rows: …",
        lambda p: resealed(p, skipped=Skipped(2, "AA==")),
    ),
    Fault(
        "a skipped row that is none of the cache's",
        ManifestError,
        "'skipped' has no list of rows: a row that is not one of 160",
        lambda p: resealed(p, skipped=Skipped(1, "oAE=")),
    ),
    Fault(
        "a shard is gone",
        MissingShardError,
        "shard 00000: must be the file …, which does not exist",
        lambda p: first(p).unlink(),
    ),
    Fault(
        "a shard is a link",
        DamagedShardError,
        "shard 00000: must be a regular file, is a symbolic link",
        lambda p: replaced(first(p), lambda file: file.symlink_to(spec.shard_name(1))),
    ),
    Fault(
        "a shard is a directory",
        DamagedShardError,
        "shard 00000: must be a regular file, is a directory",
        lambda p: replaced(first(p), Path.mkdir),
    ),
    Fault(
        "a shard is a pipe",
        DamagedShardError,
        "shard 00000: must be a regular file, is a named pipe",
        lambda p: replaced(first(p), os.mkfifo),
    ),
    Fault(
        "a shard is empty, shorter or longer",
        DamagedShardError,
        "shard 00000: must have … bytes, has 0",
        lambda p: os.truncate(first(p), 0),
    ),
    Fault(
        "a shard is zeros",
        DamagedShardError,
        "shard 00000: page 0 … ",
        lambda p: first(p).write_bytes(bytes(first(p).stat().st_size)),
    ),
    Fault(
        "a bit of its tree differs",
        DamagedShardError,
        "shard 00000: …",
        lambda p: patched(first(p), 100, b"\xff"),
    ),
    Fault(
        "a shard of another cache, or of this one in another place",
        DamagedShardError,
        "shard 00000: the digest of its structure must be …, is …",
        lambda p: shutil.copy(p / spec.shard_name(1), first(p)),
    ),
    Fault(
        "a bit of a value differs",
        DamagedBlockError,
        "shard 00000, block …, column 'noise': stored checksum 0x… differs from 0x…",
        flipped_value,
    ),
    Fault(
        "a value of another block",
        DamagedBlockError,
        "shard 00000, block …, column 'noise': stored checksum 0x… differs from 0x…",
        lambda p: rewritten(p, lambda values: swapped(values, NOISE, block.value_key(1, 1))),
    ),
    Fault(
        "a value of another column",
        DamagedBlockError,
        "shard 00000, block 0, column '…': stored checksum 0x… differs from 0x…",
        lambda p: rewritten(p, lambda values: swapped(values, NOISE, LABEL)),
    ),
    Fault(
        "a value is missing",
        DamagedShardError,
        "shard 00000: must have a value of key …, has none",
        lambda p: rewritten(p, lambda values: values.pop(LABEL)),
    ),
    Fault(
        "the index is missing",
        DamagedShardError,
        "shard 00000: must have a value of key ffffffffffffffff, has none",
        lambda p: rewritten(p, lambda values: values.pop(spec.INDEX_KEY)),
    ),
    Fault(
        "an index of another length",
        DamagedBlockError,
        "shard 00000, its index: 3 entries where the shard has … blocks of 3 columns",
        lambda p: with_body(p, spec.INDEX_KEY, b"\x01\x01\x01"),
    ),
    Fault(
        "a value shorter than its prefix",
        DamagedBlockError,
        "5 bytes, at least 16 were stored",
        lambda p: with_value(p, LABEL, b"short"),
    ),
    Fault(
        "an unknown codec",
        DamagedBlockError,
        "a prefix with codec 9 and 8 bytes",
        lambda p: with_prefix(p, LABEL, 8, 9, bytes(8)),
    ),
    Fault(
        "a length that memory could not hold",
        DamagedBlockError,
        "a prefix with codec 1 and 1099511627776 bytes",
        lambda p: with_prefix(p, NOISE, 1 << 40, 1, FRAME),
    ),
    Fault(
        "a zstd frame of another size",
        DamagedBlockError,
        "a frame of … bytes where … were stored",
        lambda p: with_prefix(p, NOISE, 7000, 1, FRAME),
    ),
    Fault(
        "no zstd frame",
        DamagedBlockError,
        "not a zstd frame",
        lambda p: with_prefix(p, NOISE, 40, 1, b"\x00" * 40),
    ),
    Fault(
        "a body of another length than its rows need",
        DamagedBlockError,
        "shard 00000, block 0, column 'label': a body …",
        lambda p: with_body(p, LABEL, bytes(9)),
    ),
    Fault(
        "sizes that leave the body",
        DamagedBlockError,
        "shard 00000, block 0, column 'noise': a body that is …",
        lambda p: with_body(p, NOISE, b"\xff" * 7000),
    ),
]


def table() -> str:
    lines = ["| what is wrong | error | what it says |", "|---|---|---|"]
    lines += [f"| {fault.what} | `{fault.error.__name__}` | {fault.says.strip()} |" for fault in FAULTS]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    CONTRIBUTING.write_text(with_table(CONTRIBUTING.read_text(encoding="utf-8")), encoding="utf-8")
