"""The pages of a shard, read without LMDB: whether its tree is sound, the tree's digest, and where every value lies.

LMDB believes its file. A bit that flips in a page of the tree is a wrong answer or a signal, and a file that was made
for the purpose can be worse. So LMDB takes no part in reading: this module walks the same pages with ``pread``, checks
each number that it follows, and hashes what it walked. The digest tells damage from what was written; the checks hold
even for a file whose digest was made to match.

A shard in LMDB's data format 1 (the library's 0.9 series), 64 bits, little-endian, pages of P bytes::

    page      u64 page number, u16 0, u16 kind, then u16 lower, u16 upper (an overflow run: u32 pages)
    0 and 1   kind 8, then the meta record: magic, version, map address, map size, two databases (of the free pages
              and of the values), the last page, the transaction. The higher transaction counts, page 0 if equal.
    branch    kind 1, then u16 offsets up to ``lower`` of nodes that lie from ``upper`` to the end of the page:
              u48 child page, u16 key size, key. The first key may be empty and is not looked at.
    leaf      kind 2, the same with nodes: u32 value size, u16 where, u16 key size, key; and then the value
              (where = 0) or the u64 page at which its overflow run starts (where = 1)
    overflow  kind 4, a run of pages with one header: the value starts 16 bytes after the start of the run

**The structure digest** is XXH3 of 128 bits, in hex, of whole pages: page 0, page 1, and the tree in preorder (a
branch page, then what is below each of its children in the order of their keys).

    Why no overflow pages: LMDB takes a value's place and size from the leaf alone. Of a run's header it reads the kind,
    only to refuse the value where that is not possible, so a flipped bit there is an error and never a wrong answer.
    One small read a value would be many times the work (there are 130 to 150 large values a leaf page).
    Why not the pages of the free list: a reader never looks at them.

A shard is what ``ShardWriter`` makes, and nothing else is accepted: keys of eight bytes, ascending, no named databases,
no duplicates, each page counted. A walk holds a few hundred pages at once, and visits at most as many as the file has.
"""

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shardcache.errors import DamagedShardError

KEY_BYTES = 8
MIN_PAGE_BYTES = 512
MAX_PAGE_BYTES = 32768  # LMDB 0.9 goes no higher: an offset in a page has 16 bits
MAX_TREE_DEPTH = 32  # LMDB's CURSOR_STACK
HEADER_BYTES = 16

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_NO_PAGE = 2**64 - 1
_BRANCH, _LEAF, _META = 1, 2, 8
_META_RECORD = struct.Struct("<Q4H II QQ IHHQQQQQ IHHQQQQQ QQ")
_BATCH_BYTES = 1 << 20
_READ_BYTES = 1 << 20

_NODE = np.dtype([("low", "<u4"), ("high", "<u2"), ("key_bytes", "<u2")])
_LEAF_NODE = np.dtype([("size", "<u4"), ("where", "<u2"), ("key_bytes", "<u2"), ("key", ">u8")])

Ints = NDArray[np.int64]


class ShardSeal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest keeps of a shard: its size, the digest of its structure and the SHA-256 of the file, in hex."""

    file_bytes: int
    structure: str
    sha256: str


def damaged(name: str, what: str) -> DamagedShardError:
    """The error for a file that is not the shard that was written."""
    return DamagedShardError(f"{name}: {what} (the file is damaged; run 'shardcache verify')")


def seal(fd: int, name: str) -> ShardSeal:
    """Read an open shard to its end and say what it is.

    Raises:
        DamagedShardError: it is not a sound shard, or cannot be read.
    """
    digest, file_bytes = hashlib.sha256(), 0
    while data := pread(fd, _READ_BYTES, file_bytes, name):
        digest.update(data)
        file_bytes += len(data)
    return ShardSeal(file_bytes, structure(fd, file_bytes, name), digest.hexdigest())


def structure(fd: int, file_bytes: int, name: str) -> str:
    """Check everything in a shard of ``file_bytes`` that LMDB would interpret; its structure digest.

    Raises:
        DamagedShardError: it is not a sound shard, or cannot be read.
    """
    digest = xxhash.xxh3_128()
    for _ in _Walk(fd, file_bytes, name, digest).leaves():
        pass
    return digest.hexdigest()


class Table(NamedTuple):
    """Where the values of a shard lie: keys (u64, from big-endian, ascending), offsets in the file, sizes in bytes."""

    keys: NDArray[np.uint64]
    offsets: Ints
    sizes: NDArray[np.uint32]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.keys.nbytes + self.offsets.nbytes + self.sizes.nbytes


def table(fd: int, seal: ShardSeal, name: str) -> Table:
    """Where the values of a shard lie, which has the structure that ``seal`` says.

    Raises:
        DamagedShardError: it has not, or cannot be read.
    """
    digest = xxhash.xxh3_128()
    nothing = _Leaf(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
    leaves = [nothing, *_Walk(fd, seal.file_bytes, name, digest).leaves()]
    if digest.hexdigest() != seal.structure:
        raise damaged(name, f"the digest of its structure must be {seal.structure}, is {digest.hexdigest()}")
    keys, offsets, sizes = (np.concatenate(column) for column in zip(*leaves, strict=True))
    return Table(keys, offsets, sizes.astype(np.uint32))


def values(
    fd: int, file_bytes: int, name: str, digest: "xxhash.xxh3_128 | None" = None
) -> Iterator[tuple[bytes, int, int]]:
    """Every value of a shard in the order of the keys: its key, its offset in the file and its size, in bytes.

    ``digest`` is fed with the structure as it is walked; what was yielded counts only when the walk has come to its end
    and the digest is the one in the shard's seal.

    Raises:
        DamagedShardError: it is not a sound shard, or cannot be read.
    """
    for leaf in _Walk(fd, file_bytes, name, xxhash.xxh3_128() if digest is None else digest).leaves():
        keys = leaf.keys.astype(">u8").tobytes()
        for i, (offset, size) in enumerate(zip(leaf.offsets.tolist(), leaf.sizes.tolist(), strict=True)):
            yield keys[KEY_BYTES * i : KEY_BYTES * (i + 1)], offset, size


class _Meta(NamedTuple):
    """What a walk needs of a meta page."""

    page_bytes: int
    transaction: int
    pages: int
    depth: int
    branches: int
    leaves: int
    overflow: int
    entries: int
    root: int


class _Leaf(NamedTuple):
    """The nodes of some leaf pages: keys (u64, from big-endian), and where the values lie in the file."""

    keys: NDArray[np.uint64]
    offsets: Ints
    sizes: Ints


class _Walk:
    """One walk over the tree of a shard; ``leaves`` may be called once."""

    def __init__(self, fd: int, file_bytes: int, name: str, digest: xxhash.xxh3_128) -> None:
        self._fd, self._file_bytes, self._name, self._digest = fd, file_bytes, name, digest
        self._branches = self._leaves = self._overflow = self._entries = 0
        self._last_key = -1
        self._meta = self._read_meta()

    def leaves(self) -> Iterator[_Leaf]:
        """What lies on the leaf pages, some pages at a time."""
        meta = self._meta
        if meta.root != _NO_PAGE:
            yield from self._below(np.array([meta.root], np.int64), 1)
        found = (self._branches, self._leaves, self._overflow, self._entries)
        must = (meta.branches, meta.leaves, meta.overflow, meta.entries)
        if found != must:
            raise self._damaged(f"branch, leaf and overflow pages and values must be {must}, are {found}")

    def _damaged(self, what: str) -> DamagedShardError:
        return damaged(self._name, what)

    def _read(self, count: int, offset: int) -> bytes:
        data = pread(self._fd, count, offset, self._name)
        if len(data) != count:
            raise self._damaged(f"ends after {offset + len(data)} bytes, must have {self._file_bytes}")
        return data

    def _read_meta(self) -> _Meta:
        if self._file_bytes < 2 * MIN_PAGE_BYTES:
            raise self._damaged(f"{self._file_bytes} bytes, too few for a shard")
        page_bytes = self._parse_meta(self._read(_META_RECORD.size, 0), 0).page_bytes
        pages = self._read(2 * page_bytes, 0)
        self._digest.update(pages)
        first, second = self._parse_meta(pages, 0), self._parse_meta(pages[page_bytes:], 1)
        if first.page_bytes != page_bytes or second.page_bytes != page_bytes:
            raise self._damaged(f"pages of {first.page_bytes} and of {second.page_bytes} bytes")
        meta = first if first.transaction >= second.transaction else second
        if meta.pages * page_bytes != self._file_bytes:
            raise self._damaged(f"must have {meta.pages} pages of {page_bytes} bytes, has {self._file_bytes} bytes")
        if meta.root != _NO_PAGE and not (1 <= meta.depth <= MAX_TREE_DEPTH and 2 <= meta.root < meta.pages):
            raise self._damaged(f"a tree of depth {meta.depth} with its root at page {meta.root} of {meta.pages}")
        return meta

    def _parse_meta(self, page: bytes, number: int) -> _Meta:
        record = _META_RECORD.unpack_from(page)
        pgno, _, kind, _, _, magic, version, _, _ = record[:9]
        page_bytes, *_ = record[9:17]
        pad, flags, depth, branches, leaves, overflow, entries, root = record[17:25]
        last_page, transaction = record[25:]
        if (pgno, kind, magic, version) != (number, _META, _MAGIC, _VERSION):
            raise self._damaged(f"page {number} is not a meta page of LMDB's data format {_VERSION}")
        if not MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES or page_bytes & (page_bytes - 1):
            raise self._damaged(f"page {number} says pages of {page_bytes} bytes")
        if (pad, flags) != (0, 0):
            raise self._damaged(f"page {number} says a database with flags 0x{flags:04x}")
        return _Meta(page_bytes, transaction, last_page + 1, depth, branches, leaves, overflow, entries, root)

    def _below(self, numbers: Ints, depth: int) -> Iterator[_Leaf]:
        """The leaves at or below some sibling pages. Depth and counts bound it, whatever the pages point at."""
        batch = max(1, _BATCH_BYTES // self._meta.page_bytes)
        if depth == self._meta.depth:
            for start in range(0, len(numbers), batch):
                yield self._leaf(numbers[start : start + batch])
            return
        for i in range(len(numbers)):
            yield from self._below(self._children(numbers[i : i + 1]), depth + 1)

    def _pages(self, numbers: Ints, count: int, most: int) -> NDArray[np.uint8]:
        if count > most:
            raise self._damaged(f"more than the {most} pages of this kind that it must have")
        size = self._meta.page_bytes
        data = b"".join([self._read(size, number * size) for number in numbers.tolist()])
        self._digest.update(data)
        return np.frombuffer(data, np.uint8)

    def _nodes(self, data: NDArray[np.uint8], numbers: Ints, kind: int, least: int, dtype: Any) -> tuple[Any, Any, Any]:
        """The nodes of some pages: of which page (0 is the first here), their offset in it, their first bytes."""
        size = self._meta.page_bytes
        words = data.view("<u2").reshape(len(numbers), size // 2)
        lower, upper = words[:, 6].astype(np.int64), words[:, 7].astype(np.int64)
        self._must(
            data.view("<u8").reshape(len(numbers), size // 8)[:, 0] == numbers,
            numbers,
            "has the number of another page",
        )
        self._must(words[:, 5] == kind, numbers, f"is not of kind {kind}")
        sound = (lower >= HEADER_BYTES + 2 * least) & (lower & 1 == 0) & (lower <= upper) & (upper <= size)
        self._must(sound, numbers, "has bounds that cannot be")
        counts = (lower - HEADER_BYTES) >> 1
        page = np.repeat(np.arange(len(numbers)), counts)
        first = np.cumsum(counts) - counts
        within = words[page, HEADER_BYTES // 2 + np.arange(len(page)) - first[page]].astype(np.int64)
        sound = (within >= upper[page]) & (within & 1 == 0) & (within + dtype.itemsize <= size)
        self._must(sound, numbers[page], "has a node outside of its bounds")
        return page, within, _records(data, dtype)[(page * size + within) >> 1]

    def _children(self, numbers: Ints) -> Ints:
        self._branches += 1
        data = self._pages(numbers, self._branches, self._meta.branches)
        page, within, node = self._nodes(data, numbers, _BRANCH, 2, _NODE)
        key_bytes = node["key_bytes"].astype(np.int64)
        fits = (key_bytes == KEY_BYTES) & (within + _NODE.itemsize + key_bytes <= self._meta.page_bytes)
        fits[0] |= key_bytes[0] == 0
        self._must(fits, numbers[page], f"has a key that is not of {KEY_BYTES} bytes")
        children: Ints = node["low"] | node["high"].astype(np.int64) << 32
        self._must((children >= 2) & (children < self._meta.pages), numbers[page], "has a child outside of the file")
        return children

    def _leaf(self, numbers: Ints) -> _Leaf:
        self._leaves += len(numbers)
        data = self._pages(numbers, self._leaves, self._meta.leaves)
        page, within, node = self._nodes(data, numbers, _LEAF, 1, _LEAF_NODE)
        self._must(node["key_bytes"] == KEY_BYTES, numbers[page], f"has a key that is not of {KEY_BYTES} bytes")
        self._must(node["where"] <= 1, numbers[page], "has a node that is not a value")
        size, sizes = self._meta.page_bytes, node["size"].astype(np.int64)
        offsets: Ints = numbers[page] * size + within + _LEAF_NODE.itemsize
        large = np.flatnonzero(node["where"])
        room = np.where(node["where"] == 1, 8, sizes)
        self._must(within + _LEAF_NODE.itemsize + room <= size, numbers[page], "has a value that leaves the page")
        at = page[large] * size + within[large] + _LEAF_NODE.itemsize
        runs = _records(data, np.dtype("<u8"))[at >> 1].astype(np.int64)
        lengths = (sizes[large] + HEADER_BYTES - 1) // size + 1
        sound = (runs >= 2) & (runs < self._meta.pages) & (lengths <= self._meta.pages - runs)
        self._must(sound, numbers[page[large]], "has a value that leaves the file")
        offsets[large] = runs * size + HEADER_BYTES
        keys = node["key"].astype(np.uint64)
        self._must(keys[1:] > keys[:-1], numbers[page[1:]], "has keys that do not ascend")
        self._must(np.array([int(keys[0]) > self._last_key]), numbers[:1], "has keys that do not ascend")
        self._last_key = int(keys[-1])
        self._entries += len(keys)
        self._overflow += int(lengths.sum())
        return _Leaf(keys, offsets, sizes)

    def _must(self, sound: NDArray[np.bool_], numbers: Ints, what: str) -> None:
        if not sound.all():
            raise self._damaged(f"page {numbers[int(np.argmin(sound))]} {what}")


def _records(data: NDArray[np.uint8], dtype: "np.dtype[Any]") -> NDArray[Any]:
    """What a record would be at every even offset: a view to index, with half of the offset."""
    return np.ndarray((len(data) - dtype.itemsize) // 2 + 1, dtype, data.data, strides=(2,))


def pread(fd: int, count: int, offset: int, name: str) -> bytes:
    """Up to ``count`` bytes of a shard, fewer only at the end of the file; what cannot be read is damage."""
    try:
        data = os.pread(fd, count, offset)
        while data and len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
            data += more
    except OSError as error:
        raise damaged(name, f"cannot be read at byte {offset}: {error.strerror}") from error
    return data


def preadv(fd: int, outs: Sequence[memoryview], offset: int, name: str) -> None:
    """Fill ``outs`` with what lies at ``offset`` of a shard; what cannot be read, or is not there, is damage."""
    left, end = list(outs), offset + sum(map(len, outs))
    try:
        while left and (count := os.preadv(fd, left, offset)):
            offset += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left:
                left[0] = left[0][count:]
    except OSError as error:
        raise damaged(name, f"cannot be read at byte {offset}: {error.strerror}") from error
    if offset != end:
        raise damaged(name, f"ends after {offset} bytes, must have {end} or more")
