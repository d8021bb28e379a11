"""Before the work starts: a few real samples decide structure, codecs, and how many rows make a block and a shard.

Everything here is a function of the samples and the options, never of a clock: two builds of the same data are the same
bytes.
"""

import hashlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from shardcache.builder import codecs
from shardcache.builder.encode import encode_columns
from shardcache.builder.infer import infer
from shardcache.builder.source import Source
from shardcache.builder.stream import Stream
from shardcache.builder.tolerance import note, said, unencodable
from shardcache.errors import SampleError, ShardCacheWarning, UsageError
from shardcache.format import compression, manifest, nested, spec
from shardcache.format.manifest import Manifest
from shardcache.format.permutation import Permutation, derive
from shardcache.format.schema import Column, Node
from shardcache.format.split import Values, block_splitter

_PROBE_SAMPLES = 128
_PROBE_BYTES = 32 << 20
_STREAM_SHARD = 16  # times the size of the smallest shards
_WINDOW_BYTES = 64 << 20
_MAX_WINDOW = 1 << 16
_PROBE_STREAM = 0x50524F4245  # "PROBE"


class Options(msgspec.Struct, frozen=True):
    """What the user may decide about a build's result."""

    layout: str | None = None
    seed: int = 0
    codec: str | Mapping[str, str] = "auto"
    block_bytes: int | None = None
    shuffle_window: int | None = None

    def check(self) -> None:
        """:class:`UsageError` where an option has no sense."""
        if self.layout not in (None, "shuffled", "source", "window"):
            raise UsageError(f"layout must be 'shuffled', 'source' or 'window', was {self.layout!r}")
        window = self.shuffle_window
        if window is not None and (type(window) is not int or not 1 <= window <= spec.MAX_ROWS):
            raise UsageError(f"shuffle_window must be a number of samples, 1 or more, was {window!r}")
        if window is not None and self.layout not in (None, "window"):
            raise UsageError(f"shuffle_window is for layout='window', the layout was {self.layout!r}")
        if type(self.seed) is not int or not -(1 << 63) <= self.seed < 1 << 63:
            raise UsageError(f"seed must be an int of 64 bits, was {self.seed!r}")
        if self.block_bytes is not None and (type(self.block_bytes) is not int or not 1 <= self.block_bytes <= 1 << 30):
            raise UsageError(f"block_bytes must be 1..{1 << 30}, was {self.block_bytes!r}")
        given = self.codec.values() if isinstance(self.codec, Mapping) else [self.codec]
        for codec in given:
            if not isinstance(codec, str):
                raise UsageError(f"codec must be a string or a dict by column, was {self.codec!r}")
            if codec != "auto":
                compression.parse_codec(codec)

    def for_source(self, source: Source) -> "Options":
        """The same with a layout; :class:`UsageError` where a source cannot be laid out so."""
        is_stream = isinstance(source, Stream)
        if is_stream and self.layout == "shuffled":
            raise UsageError(
                "a dataset that can only be iterated is laid out in its own order (layout='source') or shuffled within "
                "windows of it (layout='window'), not shuffled as a whole"
            )
        default = "window" if self.shuffle_window is not None else "source" if is_stream else "shuffled"
        return msgspec.structs.replace(self, layout=self.layout or default)


def draw_up(source: Source, options: Options) -> Manifest:
    """The plan of a build: a manifest that has no shards yet.

    What was read here is kept in ``source``, so that no sample is read twice.
    """
    assert options.layout is not None
    probe = source.probe(_PROBE_SAMPLES, _size, _PROBE_BYTES) if isinstance(source, Stream) else _read_probe(source)
    structure, columns, parts = _understood(probe, source.tolerance.skips)
    indices = list(probe)
    if options.layout != "shuffled":
        _warn_of_sorted(columns, parts, np.argsort(indices))
    encoded = encode_columns(columns, parts, indices)
    sizes = [len(one.body) + sum(map(len, one.large_rows.values())) if one else 0 for one in encoded]
    row_bytes = max(1, sum(sizes) / len(probe))
    samples = source.length if isinstance(source, Stream) else source.samples
    per_block = rows_per_block(samples, row_bytes, options.block_bytes)
    bodies = [b"".join([one.body, *one.large_rows.values()]) if one else b"" for one in encoded]
    chosen = _with_codecs(columns, parts, per_block, options)
    plan = Manifest(
        format=spec.FORMAT_NAME,
        version=spec.FORMAT_VERSION,
        cache_id="",
        byte_order=sys.byteorder,
        page_bytes=0,
        written_by={},
        samples=source.samples,
        layout=options.layout,
        seed=options.seed,
        rows_per_block=per_block,
        blocks_per_shard=blocks_per_shard(samples, per_block, row_bytes),
        structure=structure,
        columns=chosen,
        totals=(),
        shards=(),
        window=_window(options, row_bytes),
    )
    if not isinstance(source, Stream):  # which gives the probe again
        source.kept = probe
    return msgspec.structs.replace(plan, cache_id=_cache_id(plan, bodies))


def _read_probe(source: Source) -> dict[int, Any]:
    """By index: the first sample, the last, and others from everywhere; all of them in a small dataset.

    Samples that cannot be read are passed over where they are to be skipped, if not too many are.
    """
    count = min(source.samples, max(16, min(_PROBE_SAMPLES, source.samples // 8)))
    spread = Permutation(source.samples, derive(0, _PROBE_STREAM))
    order = dict.fromkeys([0, source.samples - 1, *map(spread.forward, range(min(source.samples, 2 * count)))])
    probe: dict[int, Any] = {}
    errors, volume = [], 0
    for index in order:
        try:
            probe[index] = source.read(index)
        except SampleError as error:
            if not source.tolerance.skips:
                raise
            errors.append(note(index, error))
            continue
        volume += _size(probe[index])
        if len(probe) == count or volume > _PROBE_BYTES:
            break
    if not probe:
        raise SampleError(f"none of the {len(errors)} samples that were tried could be read: {said(errors)}")
    return probe


def _understood(probe: dict[int, Any], skips: bool) -> tuple[Node, tuple[Column, ...], list[Values]]:
    """Structure, columns and values of the probe; what cannot be stored is taken out of it where it is skipped."""
    while True:
        indices, samples = list(probe), list(probe.values())
        structure, columns = infer(samples)
        split = block_splitter(structure)
        bad = unencodable(columns, split, samples, indices) if skips else {}
        for place in bad:
            del probe[indices[place]]
        if not probe:
            errors = [note(indices[place], error) for place, error in bad.items()]
            raise SampleError(f"none of the {len(bad)} samples that were tried can be stored: {said(errors)}")
        if not bad:
            return structure, columns, split(samples)


def _size(sample: Any, depth: int = 0) -> int:
    """Bytes of a sample, roughly: enough to stop in time."""
    if depth > spec.MAX_NESTED_DEPTH:
        return 8
    if isinstance(sample, (list, tuple)):
        return sum(_size(item, depth + 1) for item in sample)
    if isinstance(sample, dict):
        return sum(_size(item, depth + 1) for item in sample.values())
    if isinstance(sample, (bytes, str)):
        return len(sample)
    if hasattr(sample, "__dataclass_fields__"):
        return sum(_size(getattr(sample, name, None), depth + 1) for name in sample.__dataclass_fields__)
    if hasattr(sample, "getbands"):
        return int(sample.width * sample.height * len(sample.getbands()))
    return int(sample.nbytes) if nested.leaf_type(sample) in ("array", "tensor") else 8


def _with_codecs(
    columns: Sequence[Column], parts: Sequence[Values], rows_per_block: int, options: Options
) -> tuple[Column, ...]:
    """The columns with a codec each: as asked for, or chosen from what real blocks come to."""
    given = {str(key): codec for key, codec in options.codec.items()} if isinstance(options.codec, Mapping) else {}
    names = {column.name for column in columns}
    unknown = sorted(set(given) - names)
    if unknown:
        known = ", ".join(sorted(name for name in names if not name.endswith("/")))
        raise UsageError(f"codec for {unknown[0]!r}: there is no such column; the columns are {known}")
    default = "auto" if isinstance(options.codec, Mapping) else options.codec
    chosen = []
    for column, values in zip(columns, parts, strict=True):
        codec = given.get(column.name, default)
        if codec == "auto":
            codec, why = codecs.choose(column, values or (), rows_per_block)
        else:
            codec, why = compression.codec_name(compression.parse_codec(codec)), "as asked for"
        chosen.append(msgspec.structs.replace(column, codec=codec, why=why))
    return tuple(chosen)


def _warn_of_sorted(columns: Sequence[Column], parts: Sequence[Values], order: "np.ndarray[Any, Any]") -> None:
    """Labels that rise through the source make poor batches in its order, whatever the buffer: say so."""
    for column, part in zip(columns, parts, strict=True):
        if part is None or column.type != "int" or not all(type(value) is int for value in part):
            continue
        values = [part[position] for position in order]
        different = len(set(values))
        if 1 < different <= len(values) // 2 and values == sorted(values):
            warnings.warn(
                f"column {column.name!r} is sorted in the source: in that order a shuffle buffer sees few of "
                "its values at a time; layout='shuffled' (the default) mixes them fully",
                ShardCacheWarning,
                stacklevel=4,
            )


def _window(options: Options, row_bytes: float) -> int | msgspec.UnsetType:
    if options.layout != "window":
        return msgspec.UNSET
    return options.shuffle_window or max(1, min(_MAX_WINDOW, int(_WINDOW_BYTES / row_bytes)))


def rows_per_block(samples: int | None, row_bytes: float, block_bytes: int | None) -> int:
    """Blocks of 128 KiB; smaller ones in a small cache, so that it has 2,048 blocks to shuffle.

    ``samples`` is None where nobody knows how many there will be. More than 1,024 rows are for who asked for them.
    """
    most = spec.BLOCK_ROWS if block_bytes is None else spec.MAX_ROWS_PER_BLOCK
    if block_bytes is None:
        block_bytes = spec.BLOCK_BYTES
        if samples is not None:
            block_bytes = min(block_bytes, max(spec.MIN_BLOCK_BYTES, int(samples * row_bytes / spec.MIN_BLOCKS)))
    return max(1, min(round(block_bytes / row_bytes), most, most if samples is None else samples))


def blocks_per_shard(samples: int | None, per_block: int, row_bytes: float) -> int:
    """At least 64 shards where that leaves 8 MiB each; well below 512 MiB each, but where there would be too many.

    128 MiB where nobody knows how many there will be: so much is read again at most when a build goes on.
    """
    if samples is None:
        return max(1, int(_STREAM_SHARD * spec.MIN_SHARD_BYTES / (per_block * row_bytes)))
    wanted = samples * row_bytes / spec.MIN_SHARDS
    shard_bytes = min(max(wanted, spec.MIN_SHARD_BYTES), spec.MAX_SHARD_BYTES)
    least = -(-samples // (per_block * spec.MAX_SHARDS))
    return max(1, least, int(shard_bytes / (per_block * row_bytes)))


def _cache_id(plan: Manifest, bodies: list[bytes]) -> str:
    """An id that two caches share only if plan and probed samples are the same."""
    digest = hashlib.sha256(manifest.encode(plan))
    for body in bodies:
        digest.update(len(body).to_bytes(8, "little"))
        digest.update(body)
    return digest.hexdigest()[:32]
