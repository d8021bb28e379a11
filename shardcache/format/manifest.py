"""``manifest.json``: what a cache holds, strictly checked (``spec``, section 3)."""

import hashlib
import math
import sys
from pathlib import Path

import msgspec
import numpy as np

from shardcache.errors import CacheNotFoundError, FormatVersionError, ManifestError, UsageError
from shardcache.format import compression, dtypes, skipped, spec
from shardcache.format.columns import MASKED, Form, fixed_row_bytes
from shardcache.format.files import NotAFileError, read_regular
from shardcache.format.pages import ShardSeal
from shardcache.format.permutation import Integers, Permutation, Windows, derive
from shardcache.format.schema import Column, Leaf, Node, column_name, validate_structure, walk

# The types whose dtype is not free, and those whose form is.
_DTYPES = {"int": "<i8", "float": "<f8", "bool": "|b1", **dict.fromkeys(("str", "bytes", "image", "nested"), "|u1")}
_FIXED = frozenset("int float bool scalar array tensor".split())
_RAGGED = frozenset("str bytes image array tensor".split())
_FORMS = frozenset(form | flag for form in Form for flag in (0, MASKED))
_PAGE_BYTES = [1 << bits for bits in range(9, 16)]  # LMDB's
_MAX_DIMENSIONS = 64  # NumPy's
_MAX_SHOWN = 500  # characters of a message


class ColumnTotals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the blocks of one column came to: the forms they have, bytes before and after compression."""

    forms: tuple[int, ...] = ()
    raw_bytes: int = 0
    stored_bytes: int = 0


class Skipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many rows hold no sample of the source, and which (``skipped.decode``)."""

    count: int
    rows: str


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
    window: int | msgspec.UnsetType = msgspec.UNSET
    skipped: Skipped | msgspec.UnsetType = msgspec.UNSET
    digest: str = ""

    @property
    def kept(self) -> int:
        """How many samples there are: the rows but for those that were skipped."""
        return self.samples - (0 if self.skipped is msgspec.UNSET else self.skipped.count)

    def skipped_rows(self) -> Integers:
        """The rows that hold no sample, ascending."""
        if self.skipped is msgspec.UNSET:
            return np.empty(0, np.int64)
        return skipped.decode(self.skipped.rows, self.skipped.count, self.samples)

    def skipped_sources(self) -> Integers:
        """The source indices of those rows, ascending."""
        rows, permutation = self.skipped_rows(), self.permutation()
        return rows if permutation is None else np.sort(permutation.forward(rows))

    @property
    def blocks(self) -> int:
        return -(-self.samples // self.rows_per_block)

    @property
    def shard_count(self) -> int:
        """How many shards the blocks take, also before there are any."""
        return -(-self.blocks // self.blocks_per_shard)

    def shard_blocks(self, shard: int) -> int:
        """How many blocks a shard holds."""
        return min(self.blocks_per_shard, self.blocks - shard * self.blocks_per_shard)

    def shard_rows(self, shard: int) -> int:
        """How many rows a shard holds."""
        most = self.blocks_per_shard * self.rows_per_block
        return min(most, self.samples - shard * most)

    def block_rows(self, block: int) -> int:
        """How many rows a block of the cache holds."""
        return min(self.rows_per_block, self.samples - block * self.rows_per_block)

    def permutation(self) -> Permutation | Windows | None:
        """row -> source index, or None where they are the same."""
        if self.layout == "source":
            return None
        if self.window is not msgspec.UNSET:
            return Windows(self.samples, self.window, derive(self.seed, spec.WINDOW_STREAM))
        return layout_permutation(self.samples, self.seed)


def layout_permutation(samples: int, seed: int) -> Permutation:
    """row -> source index of a shuffled cache."""
    return Permutation(samples, derive(seed, spec.LAYOUT_STREAM))


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest, its digest filled in."""
    blank = msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))
    return blank[:-2] + hashlib.sha256(blank).hexdigest().encode() + blank[-2:]


def _is_whole(data: bytes) -> bool:
    """Whether the digest at the end of a manifest is that of its text."""
    found = hashlib.sha256(memoryview(data)[:-66])
    found.update(data[-2:])
    return data[:-66].endswith(b'"digest":"') and found.hexdigest().encode() == data[-66:-2]


class _Head(msgspec.Struct):
    """What is read of a manifest before its version is known, and how long the parts are that may be long."""

    format: str
    version: int
    shards: msgspec.Raw = msgspec.Raw(b"[]")
    skipped: msgspec.Raw = msgspec.Raw(b"{}")


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in ``data``; ``where`` names it in messages.

    Raises :class:`FormatVersionError` for a version from the future or a foreign byte order, :class:`ManifestError` for
    anything else that is wrong.
    """
    try:
        manifest = _decoded(data)
        problem = _problem(manifest)
        if problem is not None:
            raise ManifestError(problem)
        if sys.byteorder != "little":
            raise FormatVersionError("caches are little-endian, this machine is not and cannot read them")
        if manifest.byte_order != "little":
            raise FormatVersionError(f"byte order must be 'little', was {manifest.byte_order!r}")
    except (ManifestError, FormatVersionError) as error:
        raise type(error)(f"{where}: {_shown(str(error))}") from None
    return manifest


def _shown(text: str) -> str:
    """A message, in which the manifest has a say, not longer than people read."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text):,} characters)"


def _decoded(data: bytes) -> Manifest:
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != spec.FORMAT_NAME:
            raise ManifestError(f"'format' must be {spec.FORMAT_NAME!r}, was {head.format!r}")
        if head.version < 1:
            raise ManifestError(f"'version' must be 1 or more, was {head.version}")
        if head.version != spec.FORMAT_VERSION:
            raise FormatVersionError(
                f"written in format version {head.version}; this shardcache reads version "
                f"{spec.FORMAT_VERSION}: a newer shardcache is needed"
            )
        listed = memoryview(head.skipped).nbytes
        if listed > spec.MAX_SKIPPED_BYTES:
            raise ManifestError(f"{listed} bytes of 'skipped', must be at most {spec.MAX_SKIPPED_BYTES}")
        outline = len(data) - memoryview(head.shards).nbytes - listed
        if outline > spec.MAX_OUTLINE_BYTES:
            raise ManifestError(
                f"{outline} bytes beside 'shards' and 'skipped', must be at most {spec.MAX_OUTLINE_BYTES}"
            )
        if not _is_whole(data):
            raise ManifestError("its digest does not fit its content (the file is damaged)")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"is not the JSON of a manifest: {error}") from None


def _problem(m: Manifest) -> str | None:
    """The first rule of the specification that a manifest breaks."""
    limits = (
        ("samples", m.samples, 1, spec.MAX_ROWS),
        ("rows_per_block", m.rows_per_block, 1, spec.MAX_ROWS_PER_BLOCK),
        ("blocks_per_shard", m.blocks_per_shard, 1, 1 << 32),
        ("seed", m.seed, -(1 << 63), (1 << 64) - 1),
        ("columns", len(m.columns), 1, spec.MAX_COLUMNS),
        ("shards", len(m.shards), 0, spec.MAX_SHARDS),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            return f"'{name}' must be {low}..{high}, was {value}"
    if m.layout not in ("shuffled", "source", "window"):
        return f"'layout' must be 'shuffled', 'source' or 'window', was {m.layout!r}"
    if (m.layout == "window") != (m.window is not msgspec.UNSET):
        return f"'window' must be there with layout 'window' and no other; layout {m.layout!r}, window {m.window}"
    if m.window is not msgspec.UNSET and not 1 <= m.window <= spec.MAX_ROWS:
        return f"'window' must be 1..{spec.MAX_ROWS}, was {m.window}"
    if not _is_hex(m.cache_id, 32):
        return f"'cache_id' must be 32 hex digits, was {m.cache_id!r}"
    if m.page_bytes not in _PAGE_BYTES:
        return f"'page_bytes' must be a power of two, {_PAGE_BYTES[0]}..{_PAGE_BYTES[-1]}, was {m.page_bytes}"
    if len(m.shards) != m.shard_count:
        return f"'shards' must have {m.shard_count} entries, has {len(m.shards)}"
    for number, seal in enumerate(m.shards):
        if not (0 < seal.file_bytes < 1 << 63 and _is_hex(seal.structure, 32) and _is_hex(seal.sha256, 64)):
            return f"'shards' has an entry {number} that is not one: {seal}"
    return validate_structure(m.structure) or _columns_problem(m) or _skipped_problem(m)


def _skipped_problem(m: Manifest) -> str | None:
    if m.skipped is msgspec.UNSET:
        return None
    most = min(m.samples - 1, spec.MAX_SKIPPED)
    if not 1 <= m.skipped.count <= most:
        return f"'skipped' must have a count of 1..{most}, was {m.skipped.count}"
    try:
        m.skipped_rows()
    except ValueError as error:
        return f"'skipped' has no list of rows: {error}"
    return None


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and not set(text) - set("0123456789abcdef")


def _columns_problem(m: Manifest) -> str | None:
    nodes = [(column_name(path, node), node) for _, path, node in walk(m.structure)]
    names = [name for name, _ in nodes]
    if names != [column.name for column in m.columns] or len(m.totals) != len(names) or len(set(names)) < len(names):
        return "'columns' and 'totals' must have one entry for each node of the structure, of its name"
    for column, totals, (_, node) in zip(m.columns, m.totals, nodes, strict=True):
        problem = _type_problem(column) or _totals_problem(column, totals, m.samples)
        if problem is None and not isinstance(node, Leaf) and column.type != "nested":
            problem = f"type {column.type!r} in an inner node"
        if problem is not None:
            return f"column {column.name!r}: {problem}"
    return None


def _type_problem(column: Column) -> str | None:
    """What is wrong with a column by the table of types in the specification."""
    if column.type not in _FIXED | _RAGGED | {"nested"}:
        return f"type {column.type!r} is not of the format"
    free = column.type in ("array", "tensor")
    shape = column.shape if free else () if column.type in _FIXED else (None,)
    if column.dtype != _DTYPES.get(column.type, column.dtype) or column.shape != shape:
        return f"dtype {column.dtype!r} and shape {column.shape} do not go with type {column.type!r}"
    try:
        size = dtypes.item_bytes(column.type, column.dtype)
        compression.parse_codec(column.codec)
    except (ValueError, UsageError) as error:
        return str(error)
    if len(shape) > _MAX_DIMENSIONS or any(part is not None and not 0 <= part < spec.MAX_BODY_BYTES for part in shape):
        return f"shape {shape} is not a shape"
    if size * math.prod(part for part in shape if part) > spec.MAX_BODY_BYTES:
        return f"a row of shape {shape} is too large"
    return None


def _totals_problem(column: Column, totals: ColumnTotals, samples: int) -> str | None:
    plain = {Form(form & ~MASKED) for form in totals.forms if form in _FORMS}
    are_sizes = 0 <= totals.raw_bytes < 1 << 63 and 0 <= totals.stored_bytes < 1 << 63
    fits = _FORMS.issuperset(totals.forms) and are_sizes
    if Form.FIXED in plain and (column.type not in _FIXED or column.fixed_shape is None):
        fits = False
    if Form.RAGGED in plain and column.type not in _RAGGED:
        fits = False
    if totals.forms == (Form.FIXED,) and fits:  # of one row at least, and a block may have no row
        size = fixed_row_bytes(column)
        fits = size <= totals.raw_bytes <= samples * size and totals.raw_bytes % max(size, 1) == 0
    return None if fits else f"type {column.type!r} and shape {column.shape} do not go with {totals}"


def read(directory: Path, dir_fd: int | None = None) -> Manifest:
    """The manifest of the cache in ``directory``: a regular file, since a link could lead anywhere.

    With ``dir_fd``, of the directory that this descriptor has open; the path is then for messages.
    """
    path = directory / spec.MANIFEST_NAME
    try:
        data = read_regular(path, spec.MAX_MANIFEST_BYTES, dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        hint = "no such directory" if not directory.exists() else f"it has no {spec.MANIFEST_NAME}"
        raise CacheNotFoundError(f"{directory}: not a cache ({hint}); 'shardcache build' makes one") from None
    except NotAFileError as error:
        raise ManifestError(f"{directory}: {error.strerror}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    return decode(data, str(path))
