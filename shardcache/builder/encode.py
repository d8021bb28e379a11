"""Rows -> the stored values of a block."""

from collections.abc import Iterator, Sequence

from shardcache.errors import BuildError, SampleError, ShardCacheError, UnsupportedTypeError
from shardcache.format import block, columns, compression
from shardcache.format.block import Place
from shardcache.format.columns import Encoded
from shardcache.format.nested import Refused
from shardcache.format.schema import Column
from shardcache.format.split import Values

MAX_VALUE_BYTES = (1 << 32) - (1 << 20)  # what one LMDB value holds, with room for its page headers


def encode_columns(schema: Sequence[Column], parts: Sequence[Values], indices: Sequence[int]) -> list[Encoded | None]:
    """Each column of a block; ``parts`` has the values of each, ``indices`` the samples' source indices.

    Raises :class:`UnsupportedTypeError` with the sample's index, the column and the type.
    """
    encoded = []
    for column, values in zip(schema, parts, strict=True):
        try:
            encoded.append(columns.encode(column, values))
        except Exception as error:
            cause = None if isinstance(error, Refused) else error
            raise _error(column, values, indices, error) from cause
    return encoded


def _error(column: Column, values: Values, indices: Sequence[int], error: Exception) -> ShardCacheError:
    """What to raise for a block that cannot be encoded: the error of its first sample that cannot be."""
    for index, value in zip(indices, values or (), strict=True):
        try:
            columns.encode(column, [value])
        except Refused as refused:
            name = "/".join(filter(None, [column.name.strip("/"), refused.path.partition("/")[2]]))
            return UnsupportedTypeError(
                f"sample {index}, column {name or 'sample'!r}: {refused.what} cannot be stored (tensors, arrays, "
                "numbers, text, bytes, images, None, and tuples, lists, dicts and dataclasses of them can)"
            )
        except Exception as found:  # an image that is read only now, and cannot be
            return SampleError(f"sample {index}, column {column.name!r}: {type(found).__name__}: {found}")
    return BuildError(f"column {column.name!r}: {type(error).__name__}: {error}")


class BlockEncoder:
    """Turns the columns of one block after another into (key, stored value) pairs, and counts the bytes."""

    def __init__(self, schema: Sequence[Column], cache_id: bytes, shard: int) -> None:
        self._schema, self._cache_id, self._shard = schema, cache_id, shard
        self._levels = [compression.parse_codec(column.codec) for column in schema]
        self.forms: list[set[int]] = [set() for _ in schema]
        self.raw_bytes = [0] * len(schema)
        self.stored_bytes = [0] * len(schema)
        self.index = bytearray()

    def seal(self, number: int, encoded: Sequence[Encoded | None]) -> Iterator[tuple[bytes, bytearray]]:
        """The pairs of the shard's block ``number``, keys ascending."""
        has_samples = any(one is not None for one in encoded)  # else all of them were skipped
        for position, one in enumerate(encoded):
            self.index.append(columns.NO_VALUE if one is None else one.form)
            if one is None:
                if has_samples and self._schema[position].is_leaf:
                    self.forms[position].add(columns.NOTHING)
                continue
            self.forms[position].add(one.form)
            yield self._seal(number, position, None, one.body)
            for row, data in one.large_rows.items():
                yield self._seal(number, position, row, data)

    def _seal(self, number: int, position: int, row: int | None, body: bytes) -> tuple[bytes, bytearray]:
        key = block.value_key(number, position, row)
        place = Place(self._cache_id, self._shard, key, self._schema[position].name)
        value = block.seal(body, self._levels[position], place)
        if len(value) > MAX_VALUE_BYTES:
            raise BuildError(
                f"{place}: {len(value):,} bytes after compression; LMDB holds at most {MAX_VALUE_BYTES:,} in one value"
            )
        self.raw_bytes[position] += len(body)
        self.stored_bytes[position] += len(value)
        return key, value
