"""``manifest.json``: what a cache holds, strictly checked (``spec``, section 3)."""

import hashlib
import os
from pathlib import Path

import msgspec

from shardcache.errors import CacheNotFoundError, FormatVersionError, ManifestError
from shardcache.format import dtypes, spec
from shardcache.format.columns import MASKED, Form
from shardcache.format.permutation import Permutation, derive
from shardcache.format.schema import Column, Node, column_name, validate_structure, walk
from shardcache.format.shard import ShardSeal

_TYPES = frozenset("int float bool str bytes image scalar array tensor nested".split())
_FORMS = frozenset(form | flag for form in Form for flag in (0, MASKED))


class ColumnTotals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the blocks of one column came to: the forms they have, bytes before and after compression."""

    forms: tuple[int, ...] = ()
    raw_bytes: int = 0
    stored_bytes: int = 0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a reader knows about a cache before it opens a shard."""

    format: str
    version: int
    cache_id: str
    byte_order: str
    page_bytes: int
    written_by: dict[str, str]
    samples: int
    layout: str
    seed: int
    rows_per_block: int
    blocks_per_shard: int
    structure: Node
    columns: tuple[Column, ...]
    totals: tuple[ColumnTotals, ...]
    shards: tuple[ShardSeal, ...]
    digest: str = ""

    @property
    def blocks(self) -> int:
        return -(-self.samples // self.rows_per_block)

    def shard_blocks(self, shard: int) -> int:
        """How many blocks a shard holds."""
        return min(self.blocks_per_shard, self.blocks - shard * self.blocks_per_shard)

    def block_rows(self, block: int) -> int:
        """How many rows a block of the cache holds."""
        return min(self.rows_per_block, self.samples - block * self.rows_per_block)

    def permutation(self) -> Permutation | None:
        """row -> source index, or None where they are the same."""
        if self.layout == "source":
            return None
        return layout_permutation(self.samples, self.seed)


def layout_permutation(samples: int, seed: int) -> Permutation:
    """row -> source index of a shuffled cache."""
    return Permutation(samples, derive(seed, spec.LAYOUT_STREAM))


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest, its digest filled in."""
    return msgspec.json.encode(msgspec.structs.replace(manifest, digest=_digest(manifest)))


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()


class _Head(msgspec.Struct):
    """What is read of a manifest before its version is known."""

    format: str
    version: int


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in ``data``; ``where`` names it in messages.

    Raises :class:`FormatVersionError` for a version from the future or a foreign byte order, :class:`ManifestError` for
    anything else that is wrong.
    """
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != spec.FORMAT_NAME:
            raise ManifestError(f"{where}: 'format' must be {spec.FORMAT_NAME!r}, was {head.format!r}")
        if head.version != spec.FORMAT_VERSION:
            raise FormatVersionError(
                f"{where}: written in format version {head.version}; this shardcache reads version "
                f"{spec.FORMAT_VERSION}: a newer shardcache is needed"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{where}: {error}") from None
    if manifest.digest != _digest(manifest):
        raise ManifestError(f"{where}: its digest does not fit its content (the file is damaged)")
    problem = _problem(manifest)
    if problem is not None:
        raise ManifestError(f"{where}: {problem}")
    if manifest.byte_order != "little":
        raise FormatVersionError(f"{where}: byte order must be 'little', was {manifest.byte_order!r}")
    return manifest


def _problem(m: Manifest) -> str | None:
    """The first rule of the specification that a manifest breaks."""
    limits = (
        ("samples", m.samples, 1, spec.MAX_ROWS),
        ("rows_per_block", m.rows_per_block, 1, spec.MAX_ROWS_PER_BLOCK),
        ("blocks_per_shard", m.blocks_per_shard, 1, 1 << 32),
        ("seed", m.seed, -(1 << 63), (1 << 64) - 1),
        ("columns", len(m.columns), 1, spec.MAX_COLUMNS),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            return f"'{name}' must be {low}..{high}, was {value}"
    if m.layout not in ("shuffled", "source"):
        return f"'layout' must be 'shuffled' or 'source', was {m.layout!r}"
    if len(m.cache_id) != 32 or set(m.cache_id) - set("0123456789abcdef"):
        return f"'cache_id' must be 32 hex digits, was {m.cache_id!r}"
    shards = -(-m.blocks // m.blocks_per_shard)
    if len(m.shards) != shards:
        return f"'shards' must have {shards} entries, has {len(m.shards)}"
    return validate_structure(m.structure) or _columns_problem(m)


def _columns_problem(m: Manifest) -> str | None:
    names = [column_name(path, node) for _, path, node in walk(m.structure)]
    if names != [column.name for column in m.columns] or len(m.totals) != len(names):
        return "'columns' and 'totals' must have one entry for each node of the structure"
    for column, totals in zip(m.columns, m.totals, strict=True):
        if column.type not in _TYPES or not set(totals.forms) <= _FORMS:
            return f"column {column.name!r}: type {column.type!r} with forms {totals.forms} is not of the format"
        if any(size is not None and not 0 <= size < spec.MAX_BODY_BYTES for size in column.shape):
            return f"column {column.name!r}: shape {column.shape} is not a shape"
        try:
            dtypes.item_bytes(column.type, column.dtype)
        except ValueError as error:
            return f"column {column.name!r}: {error}"
    return None


def read(directory: Path) -> Manifest:
    """The manifest of the cache in ``directory``."""
    path = directory / spec.MANIFEST_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            data = file.read(spec.MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        hint = "no such directory" if not directory.exists() else f"it has no {spec.MANIFEST_NAME}"
        raise CacheNotFoundError(f"{directory}: not a cache ({hint}); 'shardcache build' makes one") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > spec.MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path}: more than {spec.MAX_MANIFEST_BYTES} bytes")
    return decode(data, str(path))
