"""Manifests that somebody made to do harm: fuzzed, huge, deep, lying. Their digest always fits."""

import copy
import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import shardcache
from shardcache import verify
from shardcache.format import leases, spec
from tests.faults.children import Aside, attempt, in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import readable, victim

FAULT = "hostile manifest, its digest made to fit"
REQUIRED = "typed error, under 64 MiB"
SHORT, LONG = 300, 200_000

MEMORY_BYTES = 61 << 20
HANG_S = 20.0
VERIFY_EVERY = 25
BATCHES = 3  # of an epoch that may say that it has 2^48 samples

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 255, 1023, 1024, 1025, 4096, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**32 + 1]
NUMBERS += [2**40, 2**48, 2**48 + 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**65, -(2**31), -(2**63)]
NUMBERS += [10**30, 10**400, -(10**400), 0.5, -0.0, 1e308, 5e-324, 1.0, 44.0]
TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "/",
    "..",
    "../../../../etc/passwd",
    "/etc/passwd",
    "~",
    "~0",
    "~2",
    "C:\\",
    "con",
    "a/b/",
]
TEXTS += [
    "\u202e",
    "\ufeff",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "\ud800",
    "{0.__class__}",
    "%s%n",
    "$(id)",
    "__class__",
]
TEXTS += ["__import__('os')", "os.system", "self", "None", "nan", "9" * 5000, "x" * 100_000, "shard-00000.lmdb"]
DTYPES = ["O", "|O", "object", "V8", "|V16", "|V0", "<i8,<i8", "i8", "<i9", "<f16", "<f3", "|S0", "|S2147483647", "<U0"]
DTYPES += ["<U536870911", "<U4611686018427387904", "<M8", "<M8[99999999999999999s]", "<M8[generic]", "<m8[0s]", "=i8"]
DTYPES += ["bfloat16", "float8_e4m3fn", "quint8", "qint32", "complex32", "uint1", "bits8", "Tensor", "load", "dtype"]
DTYPES += ["(2,2)i4", "<i8" * 100, "|b1", "|u1", ">f4", "[('a','<i8')]", "|i8"]
TYPES = "int float bool str bytes image scalar array tensor nested none object leaf tuple list dict record".split()
CODECS = ["none", "zstd", "zstd:3", "zstd:22", "zstd:-50", "zstd:23", "zstd:99999999999999999999", "zstd:", "zstd:1:2"]
CODECS += ["zstd:0x3", "zstd:٣", "lz4", "pickle", "none:3", "auto"]
SHAPES = [[], [0], [None], [None, None], [2**40], [2**40, 2**40], [2**62, 4], [2**32, 2**32], [-1], [1] * 64, [1] * 65]
SHAPES += [[None] * 64, [None] * 1000, [0, 2**62], [2**20, None, 2**20], [16, 10, 4], [10, 16, 3], [480], [1.0], ["1"]]
TEXTS += ["AA==", "AAAA", "gAE=", "oAE=", "/w==", "////", "A" * 4096, "AAAA" * 1000]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, {"type": "leaf"}, float("nan"), float("inf")]

Content = dict[str, Any]


def signed(content: Content) -> bytes:
    """The manifest of a content, with the digest that belongs to it."""
    plain = {name: value for name, value in content.items() if name != "digest"}
    return sign(json.dumps({**plain, "digest": ""}, separators=(",", ":")).encode())


def sign(blank: bytes) -> bytes:
    """Fill the digest into bytes that end in ``"digest":""}``."""
    return blank[:-2] + hashlib.sha256(blank).hexdigest().encode() + blank[-2:]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def any_value(draw: random.Random, content: Content, key: Any) -> Any:
    """Something for a place of this name; mostly of the kind that belongs there."""
    by_name = {"dtype": DTYPES, "type": TYPES, "codec": CODECS, "shape": SHAPES, "format": TEXTS, "layout": TEXTS}
    pools = [NUMBERS, TEXTS, DTYPES, TYPES, CODECS, SHAPES, OTHERS]
    kind = draw.random()
    if kind < 0.5 and key in by_name:
        return copy.deepcopy(draw.choice(by_name[key]))
    if kind < 0.6:
        container, other = draw.choice(list(places(content)))
        return copy.deepcopy(container[other])
    return copy.deepcopy(draw.choice(draw.choice(pools)))


def replace(draw: random.Random, content: Content) -> None:
    container, key = draw.choice(list(places(content)))
    container[key] = any_value(draw, content, key)


def nudge(draw: random.Random, content: Content) -> None:
    """A number that is a little wrong, or wrong by a factor."""
    numbers = [(c, key) for c, key in places(content) if type(c[key]) is int]
    container, key = draw.choice(numbers)
    container[key] = draw.choice([container[key] + 1, container[key] - 1, container[key] * 2, -container[key]])


def remove(draw: random.Random, content: Content) -> None:
    container, key = draw.choice(list(places(content)))
    del container[key]


def add(draw: random.Random, content: Content) -> None:
    container, _ = draw.choice(list(places(content)))
    value = any_value(draw, content, None)
    if isinstance(container, list):
        container.insert(draw.randrange(len(container) + 1), value)
    else:
        container[draw.choice([*TEXTS, *content])] = value


def repeat(draw: random.Random, content: Content) -> None:
    lists = [c[key] for c, key in places(content) if isinstance(c[key], list) and c[key]]
    if lists:
        found = draw.choice(lists)
        found += found * draw.choice([1, 3, 1000 // len(found)])


def deepen(draw: random.Random, content: Content) -> None:
    container, key = draw.choice(list(places(content)))
    for _ in range(draw.choice([1, 60, 65, 130])):
        container[key] = draw.choice([[container[key]], {"type": "tuple", "items": [container[key]]}])


def lie(draw: random.Random, content: Content) -> None:
    """Numbers that fit each other, and not the shards: what must be noticed before anything is allocated for it."""
    count = len(content["shards"])
    per_block, per_shard = draw.choice([1, 5, 1024]), draw.choice([1, 3, 2**20, 2**31, 2**32])
    most = min(per_block * per_shard * count, spec.MAX_ROWS)
    least = per_block * per_shard * (count - 1) + 1
    content |= {"rows_per_block": per_block, "blocks_per_shard": per_shard}
    content["samples"] = draw.choice([most, max(1, min(most, least)), draw.randint(min(least, most), most)])


MUTATIONS: tuple[Callable[[random.Random, Content], None], ...] = (
    (replace,) * 6 + (nudge,) * 2 + (remove, add, repeat, deepen, lie)
)


def fuzzed(draw: random.Random, whole: Content) -> bytes:
    content = copy.deepcopy(whole)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        with suppress(TypeError, KeyError, IndexError):  # what it would change is not there any more
            draw.choice(MUTATIONS)(draw, content)
    text = signed(content)
    if draw.random() < 0.2:
        text = fuzzed_bytes(draw, text)
    return text


def fuzzed_bytes(draw: random.Random, text: bytes) -> bytes:
    """Not JSON any more, mostly; the digest still fits."""
    data = bytearray(text[:-66])
    start = draw.randrange(len(data))
    size = draw.choice([0, 1, 1, 10])
    tokens = [b"NaN", b"-Infinity", b"1e999", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"[" * 5000, b'{"a":' * 5000, b"\0"]
    tokens += [b'"samples":1,', b'"digest":"",', b"null", b"-", b"00", b"0x10", b"/**/", b"'", b"\xef\xbb\xbf", b"  "]
    data[start : start + size] = draw.choice([*tokens, draw.randbytes(3)])
    return sign(bytes(data) + b'"}')


def catalogue(whole: Content) -> list[bytes | int]:
    """What a fuzzer seldom makes; a number stands for a file of so many zeros."""
    text = signed(whole)[:-66].decode()
    blank = text + '"}'
    first, deep = text.index('"samples"'), 200_000
    columns, items = whole["columns"][1], {"type": "leaf"}
    many = {"type": "tuple", "items": [items] * (spec.MAX_COLUMNS + 1)}
    seals = {"samples": 65_000, "rows_per_block": 1, "blocks_per_shard": 1, "shards": whole["shards"][:1] * 65_000}
    found: list[bytes | int] = [
        *(signed({**whole, **seals, **bomb}) for bomb in bombs(whole)),
        sign((text[:first] + " " * (20 << 20) + text[first:] + '"}').encode()),
        sign((text[:first] + '"samples":44,' * (1 << 20) + text[first:] + '"}').encode()),
        signed({**whole, "shards": whole["shards"][:1] * 100_000}),
        signed({**whole, "written_by": {str(number): "" for number in range(1_000_000)}}),
        signed({**whole, "totals": [{"forms": [1] * 6_000_000}]}),
        signed({**whole, "cache_id": "a" * (13 << 20)}),
        1 << 20,
        1 << 32,
        1 << 40,
    ]
    rows = "A" * (spec.MAX_SKIPPED * 4 // 3 // 4 * 4)
    skipped = {"count": len(rows) * 3 // 4, "rows": rows}
    one = {"samples": 2**31, "blocks_per_shard": 2**32, "shards": whole["shards"][:1]}
    found += [
        signed({**whole, **seals, "skipped": skipped}),
        signed({**whole, **one, "skipped": skipped}),
        signed({**whole, **one, "skipped": skipped, "layout": "window", "window": 3}),
        signed({**whole, "skipped": {"count": 2**20, "rows": "gA" * (2 << 20)}}),
        signed({**whole, "skipped": {"count": 1, "rows": "A" * (5 << 20)}}),
        signed({**whole, "skipped": [["AA=="] * 200_000]}),
        signed({**whole, "layout": "window", "window": 2**48}),
        signed({**whole, "layout": "window", "window": 1}),
    ]
    found += [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"' + b"x" * 100,
        blank.encode(),
        sign(("[" * deep + blank).encode()),
        sign(('{"a":' * deep + blank).encode()),
        sign((text[:first] + '"structure":' + '{"type":"tuple","items":[' * deep + "]}" * deep + "," + blank).encode()),
        sign((text[:first] + '"samples":1,"samples":2,"version":2,' + text[first:] + '"}').encode()),
        sign((text.replace('"version":1', '"version":1,"version":1') + '"}').encode()),
        sign(blank.encode("utf-16")),
        signed({**whole, "structure": many, "columns": [columns] * 4098, "totals": whole["totals"][:1] * 4098}),
        signed({**whole, "structure": {"type": "dict", "keys": ["a", "a"], "items": [items, items], "ordered": False}}),
        signed({**whole, "structure": {"type": "record", "name": "class", "fields": ["def"], "items": [items]}}),
        signed({**whole, "structure": {"type": "record", "name": "A", "fields": ["__init__"], "items": [items]}}),
        *(signed({**whole, "samples": 2**bits, "blocks_per_shard": 2**32, "layout": "source"}) for bits in (32, 48)),
    ]
    return found


def bombs(whole: Content) -> Iterator[Content]:
    """Members that take many times their length when they are parsed, just short enough to be parsed."""
    room = spec.MAX_OUTLINE_BYTES - 10_000
    leaf = {"type": "leaf"}
    yield {"shards": whole["shards"]}
    yield {"written_by": {}}
    yield {"written_by": {f"{number:x}": "" for number in range(room // 12)}}
    yield {"totals": [{"forms": [1] * (room // 3)}]}
    yield {"totals": [{}] * (room // 5)}
    yield {"columns": [{**whole["columns"][0], "shape": [None] * (room // 7)}]}
    yield {"columns": [{"name": "", "type": "", "dtype": ""}] * (room // 40)}
    yield {"structure": {"type": "tuple", "items": [leaf] * (room // 18)}}
    yield {"structure": {"type": "dict", "keys": [f"{number:x}" for number in range(room // 12)], "items": []}}


class Hostile:
    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        self.manifest = path / spec.MANIFEST_NAME
        self.content: Content = json.loads(self.manifest.read_bytes())
        self.skipping: Content = {**self.content, "skipped": {"count": 3, "rows": "AAUB"}}  # rows 0, 6, 8

    def begin(self) -> None:
        """In each child: all that a reader loads once is loaded, and the next manifest is made by another process."""
        self.write(signed(self.content))
        readable(self.path)
        self.use(with_verify=True)
        self.fuzz = Aside(self.write_fuzzed)

    def write_fuzzed(self, number: int) -> None:
        """It may take much more memory than a reader, who refuses it by its size."""
        draw = random.Random(f"{self.seed} {number}")
        self.write(fuzzed(draw, draw.choice([self.content, self.skipping])))

    def __call__(self, number: int) -> Outcome:
        self.fuzz(number)
        return self.use(number % VERIFY_EVERY == 0)

    def made(self, data: bytes | int) -> Outcome:
        self.write(data)
        return self.use(with_verify=False)  # whose report grows with the problems, of which this may have 65,000

    def write(self, data: bytes | int) -> None:
        self.manifest.unlink()
        with open(self.manifest, "wb") as file:
            os.truncate(file.fileno(), data) if isinstance(data, int) else file.write(data)

    def use(self, with_verify: bool) -> Outcome:
        """Everything that a user does with a cache, each on its own: one that is refused does not hide the next."""
        leases.close_all()
        outcomes = [attempt(lambda: open_and_look(self.path))]
        if outcomes[0].kind == "served":
            cache = shardcache.open(self.path)
            outcomes += [attempt(lambda at=at: cache[at]) for at in (0, len(cache) // 2, -1)]
            outcomes += [attempt(lambda order=order: batches(cache, order)) for order in ("shuffled", "stored")]
        if with_verify:
            outcomes.append(attempt(lambda: verify(self.path, num_workers=0)))
        bad = [outcome for outcome in outcomes if outcome.kind not in ("served", "refused")]
        return (bad or [outcome for outcome in outcomes if outcome.kind == "refused"] or outcomes)[0]


def open_and_look(path: Path) -> None:
    cache = shardcache.open(path)
    repr(cache), cache.info(), len(cache), repr(cache.schema)


def batches(cache: shardcache.Cache, order: str) -> None:
    dataset = shardcache.CachedDataset(cache, batch_size=8, order=order, collate="list")
    for _ in itertools.islice(dataset, BATCHES):
        pass


def run(asked: Asked) -> Figures:
    """Fuzzed manifests; and the catalogue, after trial 0, each entry in a process of its own."""
    with victim() as path:
        trial = Hostile(path, asked.seed)
        limits = {"hang_s": HANG_S, "memory_bytes": MEMORY_BYTES, "prepare": trial.begin}
        figures = in_children(trial, asked.numbers, **limits)
        for data in [] if asked.first else catalogue(trial.content):
            figures += in_children(lambda _, data=data: trial.made(data), range(1), **limits)
        return figures
