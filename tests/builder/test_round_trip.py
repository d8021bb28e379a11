"""What comes out of a cache is what went in: through ``build`` and ``open``, whatever the samples are made of."""

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shardcache
from shardcache.format import spec
from tests import strategies
from tests.builder.sources import Made, factory
from tests.exact import exact

pytestmark = strategies.QUIET


def assert_comes_back(dataset: Any, path: Any, *, types: Any = (), classes: bool = True, **options: Any) -> Any:
    options = {"block_bytes": 2000, "progress": False, **options}
    shardcache.build(dataset, path, **options)
    cache = shardcache.open(path, types=types)
    want = [exact(dataset[index], classes=classes) for index in range(len(dataset))]
    assert [exact(cache[index], classes=classes) for index in range(len(cache))] == want
    assert [exact(sample, classes=classes) for sample in cache[list(range(len(cache)))]] == want
    return cache


class Point(NamedTuple):
    x: float
    y: Any


@dataclasses.dataclass
class Box:
    corner: Point
    label: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    boxes: list[Box]
    image: Any
    area: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", float(np.random.default_rng().random()))


@dataclasses.dataclass
class Empty:
    pass


def pick(*values: Any) -> Any:
    return lambda index: values[index % len(values)]


PICTURE = Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))

STRUCTURES = {
    "int": lambda i: i - 50,
    "tuple": lambda i: (i, float(i), i % 2 == 0),
    "one-tuple": lambda i: (np.full(3, i),),
    "list": lambda i: [torch.full((2,), i), str(i)],
    "dict": lambda i: {"a": np.float32(i), "b": {"c": b"x" * i, "d": (None, i)}},
    "ordered": lambda i: collections.OrderedDict(b=i, a=str(i)),
    "integer keys": lambda i: {1: i, -7: "x", False: None} if i else {1: 0, -7: "y"},
    "odd keys": lambda i: {"a/b": i, "~": i, "": i, " ": i, "é": i, "x": {"": {"": i}}},
    "namedtuple": lambda i: Point(i, [i] * 3),
    "dataclass": lambda i: Box(Point(i, i), None if i % 2 else "text"),
    "empties": lambda i: {"t": (), "l": [], "d": {}, "e": Empty(), "s": "", "b": b"", "a": np.empty((0, 3))},
    "none": lambda i: None,
    "none or dict": lambda i: None if i % 5 == 0 else {"a": i, "b": [i, i]},
    "optional leaf": lambda i: {"a": None if i % 7 else i, "b": i},
    "missing keys": lambda i: {"a": i} if i % 3 else {"a": i, "b": np.zeros(3), "c": {"d": i, "e": "x"}},
    "varying length": lambda i: {"boxes": [np.full(4, k) for k in range(i % 4)], "n": i},
    "varying tuple": lambda i: tuple(range(i % 3)),
    "ragged": lambda i: (np.arange(i % 9), torch.ones(i % 3, 2), "é" * i, bytes(i)),
    "long plain list": lambda i: [i * k for k in range(50)],
    "tokens": lambda i: list(range(i % 40)),
    "type changes": pick(1, 2.0, "three", None, b"4", (5,), np.int8(6), torch.tensor(7)),
    "shape or none": lambda i: (None if i % 4 == 0 else np.zeros(i % 3),),
    "0-d": lambda i: (np.array(i), torch.tensor(float(i)), np.array("text"), torch.tensor(True)),
    "big ints": lambda i: 3**i * (-1) ** i,
    "images": lambda i: {"image": PICTURE.convert(strategies.IMAGE_MODES[i % 11]), "id": i},
    "image or none": lambda i: PICTURE.crop((0, 0, i % 5 + 1, 3)) if i % 2 else None,
    "dates": lambda i: (np.datetime64("2020-01-01") + i, np.timedelta64(i, "ms"), np.array(["NaT"], "M8[ns]")),
    "text arrays": lambda i: (np.array([str(i), "b"]), np.array([b"a" * (i % 3)]), np.str_("x" * i)),
    "swapped": lambda i: (np.full(3, i, ">i4"), np.full(2, i, ">f8"), np.array(["a"], ">U3")),
    "same object": pick(PICTURE),
    "deep": lambda i: {"a": [{"b": ({"c": [1, (2, {"d": i})]},)}]},
    "deeper than columns go": lambda i: eval("[" * 60 + str(i) + "]" * 60),
    "many columns": lambda i: {f"k{k}": k * i for k in range(120)},
    "word counts": lambda i: {f"word {k}": k for k in range(i % 7, i % 7 + 3)},
    "key order": lambda i: collections.OrderedDict(sorted({"a": 1, "b": 2}.items(), reverse=i % 3 == 0)),
    "1 and True": lambda i: {1: i} if i % 2 else {True: i},
    "nan keys": lambda i: {(1, None, "x"): i, 2**70: i, 1.5: i, b"k": {float("nan"): 0}},
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("layout", ["shuffled", "source"])
def test_a_structure_comes_back(name, layout, tmp_path):
    size = 40 if name in ("many columns", "images") else 90
    types = [Point, Box, Empty]
    assert_comes_back(Made(size, STRUCTURES[name]), tmp_path / "c", types=types, layout=layout)


def test_records_come_back_as_namedtuples_where_the_reader_has_no_class(tmp_path):
    dataset = Made(30, lambda i: {"p": Point(i, [Box(Point(1, 2))] * (i % 3))})
    cache = assert_comes_back(dataset, tmp_path / "c", classes=False)
    assert type(cache[0]["p"]) is not Point
    assert cache[2]["p"].y[0].corner.y == 2


def test_a_dataclass_does_not_run_its_post_init_again(tmp_path):
    scenes = [Scene([Box(Point(k, 0), "x")] * (k % 3), np.zeros((2, k % 2))) for k in range(40)]
    assert_comes_back(scenes, tmp_path / "c", types=[Scene, Box, Point])


def test_types_must_be_records(tmp_path):
    shardcache.build([1], tmp_path / "c", progress=False)
    with pytest.raises(shardcache.UsageError, match="dataclasses and namedtuples"):
        shardcache.open(tmp_path / "c", types=[int])
    with pytest.raises(shardcache.UsageError, match="a list of dataclasses and namedtuples"):
        shardcache.open(tmp_path / "c", types=5)


SIZE = 1500
PROBED = 128  # at most; with 1500 samples most are not


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        (lambda i: {"a": np.full(5, i)}, {"a": np.arange(6)}),
        (lambda i: {"a": np.full(5, i)}, {"a": np.zeros((5, 1))}),
        (lambda i: {"a": np.full(5, i)}, {"a": np.zeros(5, "f2")}),
        (lambda i: {"a": torch.full((5,), i)}, {"a": None}),
        (lambda i: {"a": torch.full((5,), i)}, {"a": "text"}),
        (lambda i: {"a": i}, {"a": 2**80}),
        (lambda i: {"a": i}, {"a": None}),
        (lambda i: {"a": i}, {}),
        (lambda i: {"a": i}, {"a": 1, "b": 2}),
        (lambda i: {"a": i}, {"b": np.zeros(2)}),
        (lambda i: {"a": i}, None),
        (lambda i: {"a": i}, [1, 2]),
        (lambda i: {"a": "text"}, {"a": "\ud800"}),
        (lambda i: {"a": (i, i)}, {"a": (1,)}),
        (lambda i: {"a": (i, i)}, {"a": [1, 2]}),
        (lambda i: [i, i], [1, 2, 3]),
        (lambda i: [i, i], []),
        (lambda i: {"a": {"b": i, "c": i}}, {"a": {}}),
        (lambda i: {"a": {"b": i, "c": i}}, {"a": None}),
        (lambda i: {"a": Point(i, i)}, {"a": (1, 2)}),
        (lambda i: np.full(3, i), {"a": [None]}),
    ],
)
@pytest.mark.parametrize("where", ["one", "late"])
def test_a_sample_that_the_probe_did_not_foresee_comes_back(usual, other, where, tmp_path, many_shards):
    """Alone somewhere in the middle; and from the middle on, in later blocks and shards."""
    odd = {700} if where == "one" else set(range(700, SIZE - 1, 3))
    dataset = Made(SIZE, lambda i: other if i in odd else usual(i))
    cache = assert_comes_back(dataset, tmp_path / "c", types=[Point], layout="source", block_bytes=500)
    assert len(cache.manifest.shards) >= 4
    assert cache.manifest.blocks > 12


def coco(index: int) -> Any:
    draw = np.random.default_rng(index)
    return {
        "image": draw.integers(0, 255, (draw.integers(3, 7), 5, 3), np.uint8),
        "target": [
            {
                "bbox": tuple(draw.random(4).tolist()),
                "category_id": int(draw.integers(90)),
                "iscrowd": bool(k % 2),
                "segmentation": [draw.random(6).tolist() for _ in range(int(draw.integers(3)))]
                if k % 3
                else {"counts": b"run lengths", "size": [5, 5]},
                **({"caption": f"object {k}"} if k % 4 == 0 else {}),
            }
            for k in range(int(draw.integers(5)))
        ],
        "meta": {"file_name": f"{index:012d}.jpg", "license": None if index % 4 else index, "size": (5, 5)},
    }


def test_a_cache_of_more_than_so_many_shards_has_larger_ones(tmp_path, many_shards, monkeypatch):
    monkeypatch.setattr(spec, "MAX_SHARDS", 5)
    cache = shardcache.build(Made(300, coco), tmp_path / "c", block_bytes=3000, progress=False)
    assert len(cache.manifest.shards) == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_annotations_that_nest_and_vary_come_back(num_workers, tmp_path, many_shards):
    cache = assert_comes_back(Made(300, coco), tmp_path / "c", num_workers=num_workers)
    assert [field.name for field in cache.schema] == [
        "image", "target", "meta/file_name", "meta/license", "meta/size/0", "meta/size/1",
    ]  # fmt: skip
    assert cache.schema["target"].type == "nested"


def test_every_sample_is_read_once_but_for_a_few_that_are_looked_at_before(tmp_path, many_shards):
    dataset = factory(1500)
    shardcache.build(dataset, tmp_path / "c", block_bytes=3000, progress=False)
    assert set(dataset.reads) == set(range(1500))
    assert set(dataset.reads.values()) <= {1, 2}
    assert sum(dataset.reads.values()) <= 1500 + 16 + 2 * 32  # read again, and beside each other


@settings(max_examples=25)
@given(st.lists(strategies.nested(), min_size=1, max_size=12))
def test_samples_that_have_nothing_in_common_come_back(tmp_path_factory, samples):
    assert_comes_back(samples, tmp_path_factory.mktemp("any") / "c", block_bytes=200)


@settings(max_examples=25)
@given(st.data())
def test_samples_of_one_structure_come_back(tmp_path_factory, data):
    parts = data.draw(
        st.dictionaries(
            st.text("ab/~1", max_size=3),
            st.sampled_from(
                [
                    strategies.ints,
                    strategies.floats,
                    strategies.texts,
                    strategies.images(),
                    strategies.arrays("<i2"),
                    strategies.tensors(torch.bfloat16, (2,)),
                    strategies.scalars(),
                    st.none() | strategies.floats,
                    st.lists(strategies.ints),
                    st.tuples(strategies.texts, strategies.bytestrings),
                ]
            ),
            min_size=1,
            max_size=4,
        )
    )
    samples = data.draw(st.lists(st.fixed_dictionaries({}, optional=parts), min_size=1, max_size=8))
    assert_comes_back(samples, tmp_path_factory.mktemp("one") / "c", block_bytes=100)


def test_large_rows_among_small_ones_come_back(tmp_path, monkeypatch):
    from shardcache.format import spec

    monkeypatch.setattr(spec, "LARGE_ROW_BYTES", 1000)
    dataset = Made(60, lambda i: (np.arange(i * 7 % 400), "x" * (i * 50), [b"y" * (2000 if i % 9 == 0 else 3)], i))
    cache = assert_comes_back(dataset, tmp_path / "c", block_bytes=20_000, layout="source")
    assert cache.manifest.rows_per_block > 4


@pytest.mark.parametrize("codec", ["none", "lzma"])
def test_blocks_of_many_rows_are_for_who_asks_for_them(codec, tmp_path):
    dataset = Made(20_000, lambda i: (i, f"row {i}"))
    assert assert_comes_back(Made(3000, dataset.make), tmp_path / "few", codec=codec).manifest.rows_per_block <= 1024
    cache = shardcache.build(dataset, tmp_path / "many", block_bytes=8 << 20, codec=codec, progress=False)
    assert cache.manifest.rows_per_block == 16_384
    shuffled = shardcache.CachedDataset(cache, batch_size=512, shuffle=True, seed=0)
    rows = [(int(number), text) for numbers, texts in shuffled for number, text in zip(numbers, texts, strict=True)]
    assert sorted(rows) == [dataset[index] for index in range(20_000)]
    assert cache[19_999] == dataset[19_999]


def test_a_sample_of_200_mb_comes_back_in_a_block_of_its_own(tmp_path):
    large = np.repeat(np.arange(200, dtype=np.uint8), 1 << 20)

    def scene(index: int) -> Any:
        return (large if index == 1 else large[: index + 1], index)

    dataset = Made(40, scene)
    shardcache.build(dataset, tmp_path / "c", codec="zstd:-5", progress=False)
    cache = shardcache.open(tmp_path / "c")
    for index in (0, 1, 2, 39):
        got, number = cache[index]
        assert number == index
        assert np.array_equal(got, dataset[index][0])


def test_a_column_without_a_value_in_any_sample_is_kept(tmp_path):
    cache = assert_comes_back(Made(50, lambda i: {"a": None, "b": i}), tmp_path / "c")
    assert [field.name for field in cache.schema] == ["a", "b"]


def test_one_sample_is_a_cache(tmp_path):
    assert_comes_back([(1, "a")], tmp_path / "c")
