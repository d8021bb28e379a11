"""The shardcache format, version 1.

This text is the specification: a reader in another language can be written from it. All integers are little-endian
unless a rule says otherwise; "u64" is an unsigned 64-bit integer. "Hash" is XXH3 of 64 bits with a seed.

1. The cache
------------
A cache is a directory that holds ``manifest.json`` and the shards ``shard-00000.lmdb``, ``shard-00001.lmdb``, ... A
shard's name derives from its number (five digits, more where needed), never from the manifest's text.

    Why: a path that comes out of a file could point anywhere.

The manifest is written last. A directory without one is not a cache. A reader writes nothing into the directory.

``provenance.json`` and ``skipped.json`` may lie beside it: remarks for people on where the cache comes from, and on why
samples were skipped. They are no part of the cache, no digest covers them, and a reader that decides anything by them
is wrong.

    Why: builds of the same data are the same bytes; the day of a build is not the data's, and the text of an error may
    hold an address.

2. Rows
-------
A cache of N rows, ``rows_per_block`` R, at most 2^14, and ``blocks_per_shard`` K. Row r lies in block ``r // R`` at
offset ``r % R``; block b lies in shard ``b // K`` as its block ``b % K``. Only the last block of the cache may be
shorter than R.

    Why: where a row lies is arithmetic, so a plan for 10^9 rows needs no index.

Row r holds the source's sample ``r`` in layout ``source``, and sample ``P.forward(r)`` in layout ``shuffled``, where P
is the permutation of ``range(N)`` with key ``derive(seed, LAYOUT_STREAM)`` of :mod:`shardcache.format.permutation`,
whose text belongs to this specification.

    Why: a shard of a shuffled cache is a fair sample of the data, whatever the order of the source.

In layout ``window``, with ``window`` W in the manifest, row r with ``k = r // W`` holds sample ``k W + P_k.forward(r %
W)``, where P_k is the permutation of ``range(min(W, N - k W))`` with key ``derive(seed, WINDOW_STREAM, k)``.

    Why: a source that can be read once, in its own order, is mixed in bounded memory, and where a sample lies is still
    arithmetic.

Rows that are listed in ``skipped`` of the manifest were to hold samples that could not be read. Such a row has the
values of the nearest row before it in its block that is not skipped, else of the nearest one behind it; a block of
skipped rows alone has no value of any column. No reader yields a skipped row. The samples of a cache are counted
without them: sample i is that of the i-th lowest source index (from 0) among the rows that are not skipped.

    Why: columns keep their form and rows their place, whatever is missing.

3. The manifest
---------------
JSON in UTF-8: the fields of :class:`shardcache.format.manifest.Manifest`, no others, ``digest`` last. The file ends in
``"digest":"``, 64 hex digits, and ``"}``; the digits are the SHA-256 of the file's bytes without them. ``byte_order``
must be ``"little"``.

    Why: the digest is checked on the bytes that are there, not on what some library would write for their content.

A cache has at most 65,536 shards and 2^20 skipped rows. The manifest has at most 16 MiB, the value of ``skipped`` in it
at most 4 MiB, and what is beside that and the value of ``shards`` at most 2 MiB.

    Why: what is parsed takes many times its length in memory, and a file may be made for that. Shards grow instead.

``layout`` is ``shuffled``, ``source`` or ``window``; ``window`` is there in the last case only. ``skipped`` is there
where rows were skipped, and has their ``count``, less than N, and ``rows``: the Base64 text (RFC 4648, with padding) of
their numbers, ascending, each as its distance from the one before, less one (the first as itself), in LEB128: seven
bits a byte from the lowest on, 0x80 added to all but the last byte, and no byte more than it takes.

    Why: a million of a billion rows take three megabytes, which parse to nothing but a string.

``structure`` is a tree of nodes, each an object with a ``type``:

    ``leaf``      a value
    ``tuple``     ``items``: nodes
    ``list``      ``items``: nodes; a list that has the same length in every sample
    ``dict``      ``keys`` (strings, integers, booleans or null), ``items``; ``ordered`` for an OrderedDict
    ``record``    ``name``, ``fields``, ``items``; ``dataclass`` true for a dataclass, false for a namedtuple

The nodes, numbered in preorder from 0 (a parent before its items), are the cache's **columns**. The column of a leaf
holds its values. The column of an inner node holds, as values of form *nested*, the samples whose part did not have the
shape that the tree says; in most caches it is empty. A key of a dict that a sample lacks leaves all columns below it
*absent* in that row.

    Why: the structure is found from some samples before the work starts, and a later sample may still surprise. It then
    costs no second pass and loses nothing.

``columns`` has one entry a node, in the same order: ``name`` (the path from the root, keys joined by ``/``, in which
``~`` and ``/`` of a key are written ``~0`` and ``~1``; an inner node's ends in ``/``; a root that is a leaf is called
``sample``; no two are the same), ``type``, ``dtype``, ``shape``, ``codec`` (``none``, ``zstd:LEVEL`` or ``lzma``) and
``why`` (words for people). ``totals`` has, again in this order, every form that some block has and the bytes before and
after compression. Where a block has no value of a leaf, and not all of its rows were skipped, 0x10 is among the forms.

    Why: a column of which every sample has a value of one shape is known without a look into the shards.

    type                 value                        dtype                             shape
    ``int``              Python int                   ``<i8``                           ()
    ``float``            Python float                 ``<f8``                           ()
    ``bool``             Python bool                  ``|b1``                           ()
    ``str``, ``bytes``   text (UTF-8), bytes          ``|u1``                           (null,)
    ``image``            an image, section 6          ``|u1``                           (null,)
    ``scalar``           a NumPy scalar               as NumPy's ``dtype.str``          ()
    ``array``            a NumPy array                as NumPy's ``dtype.str``          its shape
    ``tensor``           a PyTorch tensor             its name, e.g. ``bfloat16``       its shape
    ``nested``           any value, section 6         ``|u1``                           (null,)

A dimension that differs between samples is null in ``shape``. The keys of a dict come back in the order of its node;
an OrderedDict in another order does not have the shape that the tree says.

4. Shards
---------
A shard is an LMDB file of format 0.9 (one database, the unnamed one), written with a map of 2^40 bytes, one transaction
for each 16 MiB of values, keys in ascending order. A key is eight bytes, big-endian: block in the shard (u32), column
(u16), part (u16). Part 0 is the column's value of the block. Part k+1 is row k alone, where that row's data in a ragged
value are longer than 8 MiB and the block has more than one row; the data in part 0 then skip it.

    Why: a row of 100 MB among small ones is read when it is asked for, not with its neighbours.

The key of eight bytes 0xFF holds the shard's **index**: a *stored value* (section 5) whose body has one byte for each
(block, column), in that order: the form (section 6), or 0xFF where the block has no value of this column.

The manifest keeps of each shard its size in bytes, the digest of its structure pages
(:mod:`shardcache.format.pages`) and the SHA-256 of the file. A reader checks size and structure before it looks for a
value.

    Why: LMDB trusts its files. A flipped bit in a page of its tree is a wrong answer or a signal.

5. Stored values
----------------
16 bytes of prefix, then the stored bytes:

    bytes 0-7     the hash of everything from byte 8 on
    bytes 8-13    length of the body in bytes (u48)
    byte 14       codec: 0 stored as it is, 1 one zstd frame, 2 one LZMA2 stream
    byte 15       0

The seed of the hash is the hash, with seed 0, of: the cache's id (16 bytes), the shard (u32), and the key (8 bytes).
The zstd frame carries its content size and neither checksum nor dictionary, and nothing follows it. Before the LZMA2
stream, which has no container around it, stands one byte D, at most 4. Where D is not 0 the stream holds differences:
byte i less byte i - D, modulo 256, and the first D bytes as they are. The stream's dictionary is as long as the body,
but at least 4 KiB and at most 16 MiB. Nothing follows its end marker. The body is at most 2^15 times as long as the
stored bytes.

    Why: a valid value in the wrong place is refused too. One hash over what is stored costs less than zstd's own and
    is checked before a decoder sees a byte; the body's length is known, and checked, before memory is allocated. LZMA
    is for what is kept rather than read: beside the highest level of zstd it takes 2% (text) to a third (photographs)
    less room, and decodes at a thirtieth of the speed. The differences of pixels make two thirds of that third.

6. Bodies
---------
The lower four bits of the form say how the body is laid out; 0x10 is added where the body starts with a **mask**: one
byte a row (0 a value, 1 None, 2 absent), zeros up to a multiple of 8 bytes. Rows that have no value take no part in
what follows.

    0  *empty*    no row has a value; the body is the mask alone
    1  *fixed*    ``dtype`` items of the column's ``shape`` in C order, row after row
    2  *ragged*   sizes, then data: u64 sizes, ``len(shape)`` a row (the row's own shape); then the rows' items
    3  *nested*   u64 sizes, one a row; then for each row its bytes: one MessagePack value

``str``, ``bytes`` and ``image`` have rows of bytes, form *ragged*. A block whose rows are not what its column says
(another type, dtype or number of dimensions, an int beyond 64 bits) has form *nested*, which can hold every value.

    Why: which form fits is known per block. No shard needs to know what another one met.

MessagePack of a nested value: nil, bool, int, float 64, str, bin, array (a list) and map (a dict), and extensions:

    1  tuple       an array
    2  int         two's complement, for what is beyond 64 bits
    3  array       the array [type, dtype, shape, bin]: ``scalar``, ``array`` or ``tensor``
    4  image       as below
    5  str         UTF-8 with surrogates passed through, for what is not valid Unicode
    6  record      the array [name, fields, dataclass, values]
    7  ordered     the array [[key, value], ...]: an OrderedDict
    8  quantized   the array [dtype, shape, bin, scheme, scales, zero points, axis]: a quantized tensor
    9  pairs       the array [[key, value], ...]: a dict with a key that takes an extension (a tuple, a large int)

Arrays, maps and extensions that hold values nest at most 128 deep.

    Why: a reader may recurse, and its stack ends somewhere.

An image is the MessagePack array [mode, width, height, bin, palette, transparency]: Pillow's mode and raw bytes;
palette nil or [mode, bin]; transparency nil, an int, bin, or an array of ints.

No pickle, no code, no name that is imported.

    Why: a cache may come from anybody.
"""

FORMAT_VERSION = 1
FORMAT_NAME = "shardcache"
MANIFEST_NAME = "manifest.json"
PROVENANCE_NAME = "provenance.json"
SKIPPED_NAME = "skipped.json"

LAYOUT_STREAM = 0x4C41594F5554  # "LAYOUT"
WINDOW_STREAM = 0x57494E444F57  # "WINDOW"

MAX_ROWS_PER_BLOCK = 1 << 14
MAX_COLUMNS = 4096
MAX_DEPTH = 64
MAX_NESTED_DEPTH = 128
MAX_SHARDS = 1 << 16
MAX_ROWS = 1 << 48
MAX_BODY_BYTES = 1 << 40
MAX_MANIFEST_BYTES = 16 << 20
MAX_OUTLINE_BYTES = 2 << 20
MAX_SKIPPED_BYTES = 4 << 20
MAX_SKIPPED = 1 << 20

LARGE_ROW_BYTES = 8 << 20
MASK_ALIGNMENT = 8

BLOCK_BYTES = 128 << 10
BLOCK_ROWS = 1024
MIN_BLOCK_BYTES = 8 << 10
MIN_BLOCKS = 2048
MIN_SHARDS = 64
MIN_SHARD_BYTES = 8 << 20
MAX_SHARD_BYTES = 448 << 20

INDEX_KEY = b"\xff" * 8


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.lmdb"
