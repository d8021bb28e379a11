"""From the manifest to decoded blocks: the only way in which readers reach a shard."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from shardcache.errors import DamagedBlockError, UsageError
from shardcache.format import block, mounts, nested, spec
from shardcache.format.block import Place
from shardcache.format.columns import NO_VALUE, BlockRows, BodyError, Form
from shardcache.format.leases import MAX_OPEN, OpenShard, ShardFile, ShardReader
from shardcache.format.manifest import Manifest
from shardcache.format.schema import ABSENT
from shardcache.read.fields import Schema
from shardcache.read.hold import Hold

_KEPT_INDICES = 128


def resolve_io(io: str, directory: Path) -> str:
    """``"mmap"`` or ``"pread"``: as asked, or for ``"auto"`` what suits the file system; else a UsageError."""
    if io == "auto":
        return "pread" if mounts.is_remote(mounts.file_system(directory)) else "mmap"
    if io not in ("mmap", "pread"):
        raise UsageError(f"io must be 'auto', 'mmap' or 'pread', was {io!r}")
    return io


class OpenBlock(NamedTuple):
    """Columns of a block, and the file that they are from."""

    columns: dict[int, BlockRows]
    file: ShardFile
    opened: OpenShard


class Blocks:
    """The blocks of a cache, by their number in it, read by ``io``. Thread-safe; holds no file open by itself."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        types: Sequence[type] = (),
        io: str = "mmap",
        hold: Hold | None = None,
    ) -> None:
        self.manifest, self._hold = manifest, hold
        self._directory = directory
        self.read_by(io)
        self._cache_id = bytes.fromhex(manifest.cache_id)
        self._decode = nested.decoder(types)
        self._indices: dict[int, bytes] = {}  # of a shard: a form for each (block, column)

    def read_by(self, io: str) -> None:
        """Read by ``io`` from now on."""
        self.io = io
        self._files: dict[int, ShardFile] = {}
        # What is not compressed stays where it was read: in memory of its own, or in the map, which keeps a file open.
        self._borrow = io != "mmap" or len(self.manifest.shards) <= MAX_OPEN

    def open(self, number: int, positions: Sequence[int]) -> OpenBlock:
        """The columns of block ``number`` for as long as its file is the same."""
        at = number // self.manifest.blocks_per_shard
        with self._lease(at) as reader:
            columns = self._columns(reader, number, positions, self._forms(reader, number))
            return OpenBlock(columns, self._files[at], reader.opened)

    def read(
        self,
        number: int,
        positions: Sequence[int],
        into: Mapping[int, memoryview] = MappingProxyType({}),
    ) -> dict[int, BlockRows]:
        """The columns at ``positions`` of block ``number``; one that has no value there is left out.

        The fixed columns in ``into`` are decoded straight into the memory that is given for them. Of the others,
        what is not compressed may stay in the map of its shard.
        """
        at, local = divmod(number, self.manifest.blocks_per_shard)
        with self._lease(at) as reader:
            forms = self._forms(reader, number)
            for position, memory in into.items():
                place = self._place(at, local, position)
                if forms[position] != Form.FIXED:
                    raise not_fixed(place, forms[position])
                block.open_into(reader.find(place.key), memory, place)
            return self._columns(reader, number, positions, forms)

    def _columns(
        self, reader: ShardReader, number: int, positions: Sequence[int], forms: bytes
    ) -> dict[int, BlockRows]:
        columns = {}
        for position in positions:
            if forms[position] != NO_VALUE:
                columns[position] = self._rows(reader, number, position, forms[position])
            elif position in self._fixed:
                place = self._place(*divmod(number, self.manifest.blocks_per_shard), position)
                raise not_fixed(place, NO_VALUE)
        return columns

    @cached_property
    def _fixed(self) -> frozenset[int]:
        return Schema(self.manifest).fixed_positions

    def _lease(self, at: int) -> ShardReader:
        file = self._files.get(at)
        if file is None:
            path, dir_fd = self._directory / spec.shard_name(at), self._hold.directory if self._hold else None
            file = self._files[at] = ShardFile(path, self.manifest.shards[at], f"shard {at:05d}", self.io, dir_fd)
        return file.lease()

    def _place(self, at: int, local: int, position: int, row: int | None = None) -> Place:
        key = block.value_key(local, position, row)
        return Place(self._cache_id, at, key, self.manifest.columns[position].name)

    def _rows(self, reader: ShardReader, number: int, position: int, form: int) -> BlockRows:
        place = self._place(*divmod(number, self.manifest.blocks_per_shard), position)
        body = block.open_body(reader.get(place.key), place, self._most(position), borrow=self._borrow)
        rows = self.manifest.block_rows(number)
        try:
            found = BlockRows(self.manifest.columns[position], form, body, rows, self._decode)
        except (BodyError, ValueError) as error:
            raise block.damaged(place, f"a body that is {error}") from None
        if found.large is not None:
            found.fetch = partial(self._large, number, position)
        return found

    def _large(self, number: int, position: int, row: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """A row that has a key of its own."""
        at, local = divmod(number, self.manifest.blocks_per_shard)
        place = self._place(at, local, position, row)
        with self._lease(at) as reader:
            return block.open_body(reader.get(place.key), place, self._most(position), borrow=True)  # for one value

    def _most(self, position: int) -> int:
        """What a body of this column can be at most: a frame may say that it holds 2^15 times its length."""
        return self.manifest.totals[position].raw_bytes

    def value(self, columns: Mapping[int, BlockRows], number: int, position: int, row: int) -> Any:
        """The value of a column at a row of block ``number``, whose columns were read; ABSENT where there is none."""
        rows = columns.get(position)
        if rows is None:
            return ABSENT
        try:
            return rows.value(row)
        except ValueError as error:
            place = self._place(*divmod(number, self.manifest.blocks_per_shard), position, row)
            raise block.damaged(place, f"not a value ({error})") from None

    def values(self, columns: Mapping[int, BlockRows], number: int, row: int) -> dict[int, Any]:
        """The value of each column that was read, at a row of block ``number``."""
        return {position: self.value(columns, number, position, row) for position in columns}

    def _forms(self, reader: ShardReader, number: int) -> bytes:
        """The form of every column of a block."""
        at, local = divmod(number, self.manifest.blocks_per_shard)
        columns = len(self.manifest.columns)
        return self._index(reader, at)[local * columns : (local + 1) * columns]

    def _index(self, reader: ShardReader, at: int) -> bytes:
        """The form of every (block, column) of a shard."""
        index = self._indices.get(at)
        if index is not None:
            return index
        index = open_index(reader.get(spec.INDEX_KEY), self.manifest, at)
        if len(self._indices) >= _KEPT_INDICES:  # no lock, which a fork could leave held: each step is atomic
            self._indices.pop(list(self._indices)[0], None)  # noqa: RUF015
        self._indices[at] = index
        return index


def not_fixed(place: Place, form: int) -> DamagedBlockError:
    """The error for a block that contradicts the manifest about a column of which every sample has a value."""
    return block.damaged(place, f"form {form} where the manifest says fixed")


def open_index(value: memoryview, manifest: Manifest, at: int) -> bytes:
    """The index of shard ``at``: the form of every (block, column)."""
    place = Place(bytes.fromhex(manifest.cache_id), at, spec.INDEX_KEY)
    blocks, columns = manifest.shard_blocks(at), len(manifest.columns)
    body = block.open_body(value, place, blocks * columns)
    if len(body) != blocks * columns:
        raise block.damaged(place, f"{len(body)} entries where the shard has {blocks} blocks of {columns} columns")
    if not np.isin(body, _FORMS).all():
        raise block.damaged(place, "a form that the format does not have")
    return body.tobytes()


_FORMS = np.array([NO_VALUE, *(form | flag for form in Form for flag in (0, 0x10))], np.uint8)
