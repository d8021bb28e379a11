"""The specification's text: what it says is what the code does, and enough to write a reader from."""

import base64
import json
import lzma
import re
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest
import xxhash
import zstandard

import shardcache
from shardcache.format import block, compression, nested, shard, spec
from shardcache.format.columns import MASKED, NO_VALUE, Form
from tests.exact import exact
from tests.format.test_permutation import by_the_book

TEXT = re.sub(r"\s+", " ", spec.__doc__ or "")


def test_the_numbers_in_the_text_are_those_of_the_code():
    for number, words in [
        (shard.MAP_BYTES == 2**40, "a map of 2^40 bytes"),
        (shard.COMMIT_BYTES == 16 << 20, "one transaction for each 16 MiB"),
        (spec.LARGE_ROW_BYTES == 8 << 20, "longer than 8 MiB"),
        (spec.INDEX_KEY == b"\xff" * 8, "eight bytes 0xFF"),
        (spec.MASK_ALIGNMENT == 8, "a multiple of 8 bytes"),
        (spec.MAX_NESTED_DEPTH == 128, "at most 128 deep"),
        (compression.MAX_RATIO == 2**15, "2^15 times as long"),
        (compression.DICTIONARY_BYTES == (4 << 10, 16 << 20), "at least 4 KiB and at most 16 MiB"),
        (compression.MAX_DISTANCE == 4, "one byte D, at most 4"),
        (spec.MAX_ROWS_PER_BLOCK == 2**14, "``rows_per_block`` R, at most 2^14"),
        (block.PREFIX_BYTES == 16, "16 bytes of prefix"),
        (MASKED == 0x10, "0x10 is added"),
        (spec.MAX_SKIPPED == 2**20, "2^20 skipped rows"),
        (spec.MAX_MANIFEST_BYTES == 16 << 20, "has at most 16 MiB"),
        (spec.MAX_SKIPPED_BYTES == 4 << 20, "at most 4 MiB"),
        (NO_VALUE == 0xFF, "or 0xFF where the block has no value"),
    ]:
        assert number, words
        assert words in TEXT


def test_the_tables_in_the_text_are_those_of_the_code():
    for form in Form:
        assert f" {form.value} *{form.name.lower()}*" in TEXT
    names = {"array": "ARRAY", "tuple": "TUPLE", "int": "BIG_INT", "image": "IMAGE", "str": "TEXT", "record": "RECORD"}
    names |= {"ordered": "ORDERED", "quantized": "QUANTIZED", "pairs": "PAIRS"}
    table = re.findall(r"^    (\d)  (\w+) ", spec.__doc__ or "", re.MULTILINE)
    found = {name: int(number) for number, name in table}
    assert found == {name: getattr(nested, constant) for name, constant in names.items()}


def test_a_shard_is_named_by_its_number():
    assert [spec.shard_name(number) for number in (0, 99_999, 100_000)] == [
        "shard-00000.lmdb",
        "shard-99999.lmdb",
        "shard-100000.lmdb",
    ]


def unpacked(stored: bytes) -> bytes:
    """What an LZMA2 stream holds, by its differences."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 16 << 20}]
    body = bytearray(lzma.decompress(stored[1:], lzma.FORMAT_RAW, filters=filters))
    for place in range(stored[0], len(body)) if stored[0] else ():
        body[place] = (body[place] + body[place - stored[0]]) % 256
    return bytes(body)


class BareReader:
    """A reader that knows the text of the specification, and nothing of the package."""

    def __init__(self, path: Path) -> None:
        self.path, self.m = path, json.loads((path / "manifest.json").read_text())

    def row_of(self, index: int) -> int:
        m = self.m
        skipped = self.skipped_rows()
        kept = sorted((self.source_of(row), row) for row in range(m["samples"]) if row not in skipped)
        return kept[index][1]

    def source_of(self, row: int) -> int:
        m = self.m
        if m["layout"] == "source":
            return row
        if m["layout"] == "window":
            number, place = divmod(row, m["window"])
            key = _mix((m["seed"] + 0x9E3779B97F4A7C15 + 0x57494E444F57) % 2**64)
            key = _mix((key + 0x9E3779B97F4A7C15 + number) % 2**64)
            first = number * m["window"]
            return first + by_the_book(min(m["window"], m["samples"] - first), key, place)
        mixed = _mix((m["seed"] + 0x9E3779B97F4A7C15 + 0x4C41594F5554) % 2**64)
        return by_the_book(m["samples"], mixed, row)

    def skipped_rows(self) -> set[int]:
        rows, row, number, shift = set(), -1, 0, 0
        for byte in base64.b64decode(self.m.get("skipped", {"rows": ""})["rows"]):
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                row += number + 1
                rows.add(row)
                number = shift = 0
        return rows

    def value(self, env: Any, number: int, key: bytes) -> bytes:
        with env.begin() as txn:
            stored = txn.get(key)
        seed = xxhash.xxh3_64_intdigest(bytes.fromhex(self.m["cache_id"]) + number.to_bytes(4, "little") + key)
        assert xxhash.xxh3_64_intdigest(stored[8:], seed=seed) == int.from_bytes(stored[:8], "little")
        body = [bytes, zstandard.ZstdDecompressor().decompress, unpacked][stored[14]](stored[16:])
        assert len(body) == int.from_bytes(stored[8:14], "little")
        return body

    def leaf(self, index: int, column: int) -> Any:
        m, row = self.m, self.row_of(index)
        number, offset = divmod(row, m["rows_per_block"])
        at, local = divmod(number, m["blocks_per_shard"])
        rows = min(m["rows_per_block"], m["samples"] - number * m["rows_per_block"])
        with lmdb.open(str(self.path / f"shard-{at:05d}.lmdb"), subdir=False, readonly=True, lock=False) as env:
            form = self.value(env, at, b"\xff" * 8)[local * len(m["columns"]) + column]
            if form == 0xFF:
                return "absent"
            key = local.to_bytes(4, "big") + column.to_bytes(2, "big")
            body, place = self.value(env, at, key + b"\0\0"), offset
            if form & 0x10:
                mask, body = body[:rows], body[-(-rows // 8) * 8 :]
                if mask[offset]:
                    return (None, "absent")[mask[offset] - 1]
                place, rows = mask[:offset].count(0), mask.count(0)
            return self.unpack(m["columns"][column], form & 15, body, place, rows)

    def unpack(self, column: Any, form: int, body: bytes, place: int, rows: int) -> Any:
        if form == 1:
            return np.frombuffer(body, column["dtype"]).reshape(rows, *column["shape"])[place]
        wide = len(column["shape"]) if form == 2 else 1
        sizes = np.frombuffer(body[: rows * wide * 8], "<u8").reshape(rows, wide)
        item = np.dtype(column["dtype"]).itemsize if form == 2 else 1
        ends = np.cumsum(sizes.prod(axis=1) * item).tolist()
        data = body[rows * wide * 8 :][ends[place] - int(sizes[place].prod()) * item : ends[place]]
        if form == 3:
            return msgspec.msgpack.decode(data)
        if column["type"] == "str":
            return data.decode()
        return np.frombuffer(data, column["dtype"]).reshape(sizes[place])


def _mix(w: int) -> int:
    w = (w ^ w >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    w = (w ^ w >> 27) * 0x94D049BB133111EB % 2**64
    return w ^ w >> 31


@pytest.mark.parametrize("layout", ["shuffled", "source", "window"])
@pytest.mark.parametrize("bad", [[], [*range(0, 60, 7), *range(100, 140)]], ids=["", "skipping"])
def test_a_reader_that_was_written_from_the_text_reads_a_cache(layout, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(spec, "MIN_SHARD_BYTES", 3000)
    samples = [
        {
            "number": None if index % 7 == 3 else index,
            "grid": np.full((2, 3), index, ">i2"),
            "text": "é" * (index % 11),
            "boxes": np.full((index % 3, 4), index, "<f4"),
            "plain": [index] * (index % 4),
            **({"rare": index} if index % 5 == 0 else {}),
        }
        for index in range(150)
    ]
    options = {"shuffle_window": 11} if layout == "window" else {}
    options |= {"on_error": "skip", "max_errors": 49} if bad else {}
    source = [object() if index in bad else sample for index, sample in enumerate(samples)]
    samples = [sample for index, sample in enumerate(samples) if index not in bad]
    options |= {"codec": {"grid": "lzma", "text": "lzma", "number": "zstd:3"}}
    shardcache.build(source, tmp_path / "c", layout=layout, seed=5, block_bytes=2000, progress=False, **options)
    reader = BareReader(tmp_path / "c")
    assert len(reader.m["shards"]) > 1
    names = [column["name"] for column in reader.m["columns"]]
    for index in (0, 1, 3, 17, len(samples) - 1):
        for position, name in enumerate(names):
            want = samples[index].get(name, "absent")
            got = reader.leaf(index, position)
            got = got.item() if isinstance(want, int) and got is not None else got
            assert exact(got) == exact(want), (index, name)
