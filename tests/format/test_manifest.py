"""A manifest is what the specification says to the last field, or it is refused by name."""

import copy
import hashlib
import json
import os
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardcache
from shardcache.errors import CacheNotFoundError, FormatVersionError, ManifestError
from shardcache.format import manifest, spec
from shardcache.format.manifest import ColumnTotals, Manifest
from shardcache.format.permutation import Permutation, derive
from shardcache.format.schema import Column, DictNode, Leaf, ListNode, RecordNode, TupleNode
from shardcache.format.shard import ShardSeal

SEAL = ShardSeal(8192, "ab" * 16, "cd" * 32)
NESTED = ("nested", "|u1", (None,))

WHOLE = Manifest(
    format="shardcache",
    version=1,
    cache_id="0123456789abcdef" * 2,
    byte_order="little",
    page_bytes=4096,
    written_by={"zstd": "1.5.7", "lmdb": "0.9.33"},
    samples=1000,
    layout="shuffled",
    seed=-7,
    rows_per_block=100,
    blocks_per_shard=4,
    structure=DictNode(
        ("image", 1, None),
        (Leaf(), TupleNode((Leaf(), ListNode((Leaf(),)))), RecordNode("Box", ("x",), (Leaf(),), True)),
    ),
    columns=(
        Column("/", *NESTED),
        Column("image", "tensor", "bfloat16", (3, None), "zstd:-1", "ratio 1.5 on 128 probed samples"),
        Column("1/", *NESTED),
        Column("1/0", "array", ">f4", (2, 2)),
        Column("1/1/", *NESTED),
        Column("1/1/0", "str", "|u1", (None,)),
        Column("None/", *NESTED),
        Column("None/x", "scalar", "<M8[ns]", ()),
    ),
    totals=(
        *(
            ColumnTotals((), 0, 0),
            ColumnTotals((2, 18), 99, 50),
            ColumnTotals((3,), 1, 1),
            ColumnTotals((1,), 16_000, 5),
        ),
        *(ColumnTotals((0x10,), 8, 24), ColumnTotals((2, 3), 7, 7), ColumnTotals(), ColumnTotals((1,), 8000, 8)),
    ),
    shards=(SEAL, SEAL, SEAL),
)


def decode(data: bytes) -> Manifest:
    return manifest.decode(data, "here")


def signed(content: Any) -> bytes:
    """Any content with a digest that fits."""
    blank = json.dumps({**content, "digest": ""}, separators=(",", ":"), ensure_ascii=False).encode()
    return blank[:-2] + hashlib.sha256(blank).hexdigest().encode() + blank[-2:]


def as_json() -> dict[str, Any]:
    return json.loads(manifest.encode(WHOLE))


def test_a_manifest_comes_back():
    data = manifest.encode(WHOLE)
    found = decode(data)
    assert msgspec.structs.replace(found, digest="") == WHOLE
    assert manifest.encode(found) == data
    assert signed({name: part for name, part in as_json().items() if name != "digest"}) == data


def test_the_digest_is_laid_out_as_the_specification_says():
    data = manifest.encode(WHOLE)
    assert data[-67:-66] == b'"'
    assert data[-76:-66] == b'"digest":"'
    assert hashlib.sha256(data[:-66] + data[-2:]).hexdigest().encode() == data[-66:-2]


def test_where_a_row_lies_is_arithmetic():
    assert (WHOLE.blocks, [WHOLE.shard_blocks(k) for k in range(3)]) == (10, [4, 4, 2])
    short = msgspec.structs.replace(WHOLE, samples=901)
    assert [short.block_rows(block) for block in (0, 8, 9)] == [100, 100, 1]


def test_the_layout_is_the_permutation_of_the_specification():
    layout = WHOLE.permutation()
    assert layout is not None
    same = Permutation(1000, derive(-7, 0x4C41594F5554))
    assert [layout.forward(k) for k in range(20)] == [same.forward(k) for k in range(20)]
    assert msgspec.structs.replace(WHOLE, layout="source").permutation() is None


def put(path: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            content = content[part]
        content[last] = value

    return change


def drop(name: str) -> Callable[[Any], None]:
    return lambda content: content.pop(name)


DEEP: Any = {"type": "leaf"}
for _ in range(spec.MAX_DEPTH + 1):
    DEEP = {"type": "tuple", "items": [DEEP]}

WRONG = [
    *[(drop(name), name) for name in as_json() if name not in ("digest", "format", "version")],
    (drop("format"), "format"),
    (drop("version"), "version"),
    (put("surprise", 1), "surprise"),
    (put("format", "zarr"), "'format' must be 'shardcache', was 'zarr'"),
    (put("version", 0), "version"),
    (put("version", -3), "version"),
    (put("version", "1"), "version"),
    (put("cache_id", "xy" * 16), "'cache_id' must be 32 hex digits"),
    (put("cache_id", "ab"), "cache_id"),
    (put("cache_id", 7), "cache_id"),
    (put("page_bytes", 0), "page_bytes"),
    (put("page_bytes", 4095), "page_bytes"),
    (put("page_bytes", 1 << 20), "page_bytes"),
    (put("written_by", {"zstd": 1}), "written_by"),
    (put("samples", 0), "'samples' must be 1..281474976710656, was 0"),
    (put("samples", -1), "samples"),
    (put("samples", 2**60), "samples"),
    (put("samples", 10**30), "samples"),
    (put("samples", 1.5), "samples"),
    (put("samples", 1300), "'shards' must have 4 entries, has 3"),
    (put("samples", 800), "'shards' must have 2 entries, has 3"),
    (put("layout", "sorted"), "layout"),
    (put("seed", 2**64), "seed"),
    (put("rows_per_block", 0), "rows_per_block"),
    (put("rows_per_block", 2**14 + 1), "rows_per_block"),
    (put("blocks_per_shard", 0), "blocks_per_shard"),
    (put("blocks_per_shard", 2**33), "blocks_per_shard"),
    (put("structure", None), "structure"),
    (put("structure", {"type": "object"}), "structure|object"),
    (put("structure", {"type": "leaf", "pickle": "gASV"}), "pickle"),
    (put("structure", {"type": "leaf"}), "one entry for each node"),
    (put("structure", DEEP), "nested deeper than 64"),
    (put("structure.keys", ["image", 1]), "names do not fit"),
    (put("structure.keys", ["image", 1, 1]), "names do not fit"),
    (put("structure.keys", ["image", 1, True]), "names do not fit"),
    (put("structure.keys", ["image", 1, 2]), "one entry for each node"),
    (put("structure.keys", ["image", 1, 1.5]), "keys"),
    (put("structure.items", []), "names do not fit|without items"),
    (put("structure.items.1.items", []), "without items"),
    (put("structure.items.2.name", "import"), "a record that is called 'import'"),
    (put("structure.items.2.name", "a; b"), "a record that is called"),
    (put("structure.items.2.fields", ["y"]), "one entry for each node"),
    (put("structure.items.2.fields", ["x", "y"]), "names do not fit"),
    (put("columns", []), "columns"),
    (put("columns.1.name", "picture"), "one entry for each node"),
    (put("columns.1.type", "object"), "type 'object' is not of the format"),
    (put("columns.1.dtype", "object"), "'object' is not an element type"),
    (put("columns.1.dtype", "<f4"), "'<f4' is not an element type"),
    (put("columns.1.dtype", "quint8"), "'quint8' is not an element type"),
    (put("columns.3.dtype", "|O8"), "is not an element type"),
    (put("columns.3.dtype", "<f8,<f8"), "is not an element type"),
    (put("columns.1.shape", [-1, 3]), "shape"),
    (put("columns.1.shape", [2**50]), "shape"),
    (put("columns.1.shape", [2**30, 2**30]), "too large"),
    (put("columns.1.shape", [1] * 65), "shape"),
    (put("columns.1.codec", "gzip"), "codec 'gzip'"),
    (put("columns.1.codec", "auto"), "codec 'auto'"),
    (put("columns.1.why", 3), "why"),
    (put("columns.1.function", "os.system"), "function"),
    (put("columns.5.shape", []), "do not go with type 'str'"),
    (put("columns.5.dtype", "<U4"), "do not go with type 'str'"),
    (put("columns.7.shape", [2]), "do not go with type 'scalar'"),
    (put("columns.0.type", "str"), "in an inner node"),
    (put("totals", []), "totals"),
    (put("totals.3.raw_bytes", 16_004), "column '1/0': type 'array' and shape .* do not go with .*raw_bytes=16004"),
    (put("totals.1.forms", [1]), r"column 'image': type 'tensor' and shape \(3, None\) do not go with"),
    (put("totals.5.forms", [1]), "column '1/1/0'"),
    (put("totals.7.forms", [2]), "column 'None/x'"),
    (put("totals.1.forms", [4]), "column 'image'"),
    (put("totals.1.forms", [0x20]), "column 'image'"),
    (put("totals.1.raw_bytes", -1), "column 'image'"),
    (put("totals.1.raw_bytes", 10**400), "column 'image'"),
    (put("totals.1.stored_bytes", 1 << 63), "column 'image'"),
    (put("shards.1.file_bytes", 0), "'shards' has an entry 1"),
    (put("shards.1.structure", "zz" * 16), "'shards' has an entry 1"),
    (put("shards.1.sha256", ""), "'shards' has an entry 1"),
    (put("shards.1.path", "/etc/passwd"), "path"),
    (put("shards", []), "'shards' must have 3 entries, has 0"),
    (put("layout", "window"), "'window' must be there with layout 'window'"),
    (put("window", 10), "'window' must be there with layout 'window' and no other"),
    (put("window", None), "window"),
    (put("skipped", None), "skipped"),
    (put("skipped", {"count": 1}), "skipped"),
    (put("skipped", {"count": 1, "rows": "AA==", "path": "x"}), "path"),
    (put("skipped", {"count": 0, "rows": ""}), r"'skipped' must have a count of 1\.\.999, was 0"),
    (put("skipped", {"count": 1000, "rows": "A" * 2000}), "was 1000"),
    *[
        (put("skipped", {"count": count, "rows": rows}), f"'skipped' has no list of rows: .*{what}")
        for count, rows, what in [
            (1, "AA", "padding"),
            (1, "\u00e9", "ASCII"),
            (2, "AA==", "1 bytes where 2 rows are listed"),
            (1, "AAA=", "more than 1 rows"),
            (2, "gAGA", "a number without an end"),
            (2, "gAAB", "longer than it must be"),
            (1, "//////////8B", "longer than it must be"),
            (2, "gICAAQ==", "1 rows where 2 are listed"),
            (1, "6Ac=", "a row that is not one of 1000"),
        ]
    ],
]


@pytest.mark.parametrize(("change", "what"), WRONG)
def test_a_field_that_is_wrong_is_named(change, what):
    content = as_json()
    content.pop("digest")
    change(content)
    with pytest.raises(ManifestError, match=f"^here: .*({what})"):
        decode(signed(content))


@pytest.mark.parametrize(("name", "value"), [("version", 2), ("version", 10**6), ("byte_order", "big")])
def test_what_is_from_elsewhere_is_told_apart_from_what_is_wrong(name, value):
    content = as_json()
    content.pop("digest")
    content[name] = value
    with pytest.raises(FormatVersionError, match=str(value)):
        decode(signed(content))


def test_a_version_from_the_future_is_known_before_anything_else_is_looked_at():
    with pytest.raises(FormatVersionError, match=r"format version 7.*newer shardcache"):
        decode(b'{"format": "shardcache", "version": 7, "everything": ["else", "is", "new"]}')


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"{}", b"[]", b"\xff\xfe", b"null", b'{"format": "shardcache"', b"[" * 10**6]
)
def test_what_is_not_a_manifest_is_refused(data):
    with pytest.raises(ManifestError, match=r"^here: "):
        decode(data)


@pytest.mark.parametrize("wrap", [b'{"structure":' + b'{"type":"tuple","items":[' * 30_000, b'{"a":' * 10**6])
def test_a_manifest_that_is_nested_without_end_is_refused(wrap):
    with pytest.raises(ManifestError, match=r"^here: "):
        decode(wrap)
    with pytest.raises(ManifestError, match=r"^here: "):
        decode(b'{"format":"shardcache","version":1,' + wrap[1:])


def test_every_byte_counts():
    data = manifest.encode(WHOLE)
    draw = random.Random(1)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        with pytest.raises((ManifestError, FormatVersionError)):
            decode(bytes(changed))
    for length in range(0, len(data), 7):
        with pytest.raises(ManifestError):
            decode(data[:length])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=5,
)


def places(content: Any) -> Any:
    """Every (container, key) in a tree."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from places(content[key])


@settings(max_examples=400)
@given(st.data())
def test_whatever_stands_in_a_field_is_an_error_of_ours_or_a_sound_manifest(data):
    content = as_json()
    content.pop("digest")
    for _ in range(data.draw(st.integers(1, 2))):
        every = list(places(content))
        container, key = every[data.draw(st.integers(0, len(every) - 1))]
        others = [copy.deepcopy(other[name]) for other, name in every]
        container[key] = data.draw(values | st.sampled_from(others))
    try:
        found = decode(signed(content))
    except (ManifestError, FormatVersionError):
        return
    again = manifest.decode(manifest.encode(found), "again")  # its digest is that of other bytes
    assert msgspec.structs.replace(again, digest="") == msgspec.structs.replace(found, digest="")


class TestReading:
    @pytest.fixture
    def path(self, tmp_path) -> Any:
        shardcache.build([1, 2, 3], tmp_path / "c", progress=False)
        return tmp_path / "c"

    @pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
    def test_where_there_is_no_cache_it_is_said(self, name, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("")
        with pytest.raises(CacheNotFoundError, match="not a cache"):
            shardcache.open(tmp_path / name)

    def test_a_manifest_that_is_no_file_is_refused(self, path):
        (path / "manifest.json").unlink()
        (path / "manifest.json").mkdir()
        with pytest.raises(ManifestError, match="must be a regular file, is a directory"):
            shardcache.open(path)

    def test_a_manifest_without_end_is_refused(self, path, monkeypatch):
        monkeypatch.setattr(spec, "MAX_MANIFEST_BYTES", 100)
        with pytest.raises(ManifestError, match="at most 100 bytes, has"):
            shardcache.open(path)

    def test_what_may_not_be_long_is_not_parsed(self):
        """Parsed, a megabyte of it would take twenty."""
        content = as_json()
        content["written_by"] = {str(number): "" for number in range(300_000)}
        with pytest.raises(
            ManifestError, match=r"here: \d+ bytes beside 'shards' and 'skipped', must be at most 2097152"
        ):
            decode(signed(content))

    def test_a_named_pipe_does_not_block(self, path):
        (path / "manifest.json").unlink()
        os.mkfifo(path / "manifest.json")
        with pytest.raises(ManifestError, match=r"manifest\.json must be a regular file, is a named pipe"):
            shardcache.open(path)

    def test_a_link_is_not_followed(self, path):
        """Even to the right file: one could lead anywhere."""
        (path / "manifest.json").rename(path / "elsewhere")
        (path / "manifest.json").symlink_to("elsewhere")
        with pytest.raises(ManifestError, match="must be a regular file, is a symbolic link"):
            shardcache.open(path)


@pytest.mark.parametrize("field", ["format", "layout", "cache_id", "x" * 100_000])
def test_a_message_is_short_and_plain_whatever_the_manifest_says(field: str):
    text = "\x1b[2J" + "y" * 100_000
    plain = {key: value for key, value in as_json().items() if key != "digest"}
    blank = json.dumps({**plain, field: text, "digest": ""}, separators=(",", ":")).encode()
    with pytest.raises(ManifestError) as caught:
        manifest.decode(blank[:-2] + hashlib.sha256(blank).hexdigest().encode() + blank[-2:], "here")
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()
