"""What cannot be built says why, names the sample, and leaves nothing behind."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shardcache
from shardcache import CacheExistsError, SampleError, SourceError, StorageError, UnsupportedTypeError, UsageError
from tests.builder.conftest import digests
from tests.builder.sources import Made, factory


def build(dataset: Any, path: Path, **options: Any) -> Any:
    return shardcache.build(dataset, path, progress=False, **options)


class Thing:
    pass


@dataclasses.dataclass
class Holder:
    inner: Any


UNSTORABLE = [
    (Thing(), r"test_refusals\.Thing"),
    ({1, 2}, "set; return a sorted list"),
    (bytearray(b"x"), "bytearray; return bytes"),
    (Path("x"), r"return str\(path\)"),
    (np.array([None]), "dtype object"),
    (np.zeros(2, [("a", "i4")]), "dtype"),
    (np.ma.masked_array([1]), "MaskedArray"),
    (torch.eye(2).to_sparse(), "sparse"),
    (torch.empty(2, dtype=torch.bits8), "bits8"),
    (torch.zeros(2, device="meta"), "meta"),
    (3 + 4j, "complex"),
    (lambda: 0, "function"),
    (type("MyInt", (int,), {})(3), "a subclass of a plain type"),
    (torch.Generator(), "Generator"),
]


@pytest.mark.parametrize(("value", "what"), UNSTORABLE)
@pytest.mark.parametrize(
    ("wrap", "column"),
    [
        (lambda v: v, "sample"),
        (lambda v: (0, v), "1"),
        (lambda v: {"a": {"b": v}}, "a/b"),
        (lambda v: {"a": [{"b": v}] * 2}, "a/0/b"),
        (lambda v: Holder(v), "inner"),
    ],
)
def test_a_type_that_has_no_place_is_refused_with_index_column_and_type(
    value, what, wrap, column, tmp_path, leaves_nothing
):
    """In the probe, and behind it in a column that was made for something else."""
    with pytest.raises(UnsupportedTypeError, match=what) as caught:
        build([wrap(value)] * 3, tmp_path / "c")
    assert re.match(rf"sample \d, column '{column}': ", str(caught.value))
    with pytest.raises(UnsupportedTypeError, match=what) as caught:
        build(Made(600, lambda i: wrap(value if i == 333 else np.arange(i % 3))), tmp_path / "c", layout="source")
    assert str(caught.value).startswith(f"sample 333, column '{column}': ")
    leaves_nothing()


def test_a_path_to_a_value_deep_in_plain_data_is_told(tmp_path):
    samples = Made(600, lambda i: {"a": [[1] * (i % 3), {"k": Thing() if i == 321 else i}]})
    with pytest.raises(UnsupportedTypeError, match="sample 321, column 'a/1/k'"):
        build(samples, tmp_path / "c")


def test_a_value_that_contains_itself_is_refused(tmp_path, leaves_nothing):
    loop: list[Any] = [1]
    loop.append(loop)
    for samples in ([loop] * 2, [{"a": loop}, {"a": loop}]):
        with pytest.raises(UnsupportedTypeError, match="contains itself"):
            build(samples, tmp_path / "c")
    leaves_nothing()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("index", [0, 417])
def test_an_exception_in_the_dataset_names_the_sample(index, num_workers, tmp_path, leaves_nothing):
    def make(i: int) -> int:
        if i == index:
            raise ZeroDivisionError("my own words")
        return i

    with pytest.raises(SampleError, match=rf"dataset\[{index}\] raised ZeroDivisionError: my own words") as caught:
        build(Made(600, make), tmp_path / "c", num_workers=num_workers)
    if num_workers == 0 or index == 0:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    else:
        assert any("in make" in note for note in caught.value.__notes__)
    leaves_nothing()


def test_an_image_that_turns_out_to_be_broken_when_it_is_read_names_the_sample(tmp_path, leaves_nothing):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "png")
    whole = file.getvalue()

    def make(i: int) -> Any:
        return Image.open(io.BytesIO(whole[: len(whole) // 2] if i == 411 else whole)), i

    with pytest.raises(SampleError, match=r"sample 411, column '0': .*truncated"):
        build(Made(500, make), tmp_path / "c", layout="source")
    leaves_nothing()


class Lying(Made):
    def __init__(self, says: Any) -> None:
        super().__init__(20, lambda i: i)
        self.says = says

    def __len__(self) -> int:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.mark.parametrize(
    ("says", "error", "what"),
    [
        (0, SourceError, "is empty"),
        (21, SampleError, r"dataset\[20\] raised IndexError: 20 \(len\(dataset\) says 21\)"),
        (2**60, SourceError, "must have at most"),
        (-1, SourceError, "raised ValueError"),
        ("three", SourceError, "raised TypeError"),
        (NotImplementedError("no length here"), SourceError, "NotImplementedError: no length here"),
    ],
)
def test_a_length_that_is_not_one_is_told(says, error, what, tmp_path, leaves_nothing):
    dataset = Lying(says)
    with pytest.raises(error, match=what):
        build(dataset, tmp_path / "c")
    leaves_nothing()


@pytest.mark.parametrize(
    ("dataset", "options", "what"),
    [
        (None, {}, "must have __len__ and __getitem__"),
        (7, {}, r"was builtins\.int"),
        ([1], {"kwargs": {"a": 1}}, "kwargs= goes with a callable"),
        (factory, {"kwargs": 5}, "kwargs must be a dict of arguments by name, was 5"),
        (factory, {"kwargs": {1: 2}}, "kwargs must be a dict"),
        ("no colon", {}, "'package.module:callable'"),
        ("no.such.module:f", {}, "there is no module 'no'"),
        ("no/such/file.py:f", {}, "there is no file"),
        ("os:no_such_thing", {}, "has no 'no_such_thing'"),
    ],
)
def test_what_is_not_a_dataset_is_refused(dataset, options, what, tmp_path, leaves_nothing):
    with pytest.raises(UsageError, match=what):
        build(dataset, tmp_path / "c", **options)
    leaves_nothing()


@pytest.mark.parametrize("path", [5, None, b"caches", "a\0b"])
def test_what_names_no_directory_is_refused_wherever_one_is_asked_for(path):
    calls = [shardcache.open, shardcache.verify, shardcache.finish]
    calls += [lambda path: build([1], path), lambda path: shardcache.repair(path, [1])]
    for call in calls:
        with pytest.raises(UsageError, match="path must name a directory, was"):
            call(path)


def test_a_number_of_workers_that_makes_no_sense_is_refused_before_a_build_too():
    with pytest.raises(UsageError, match="num_workers must be 0 or more, was -1"):
        shardcache.estimate([1], num_workers=-1)


def test_a_factory_that_raises_says_with_which_arguments(tmp_path, leaves_nothing):
    with pytest.raises(SourceError, match=r"factory\(size='x'\)|len\(\) of the dataset"):
        build(factory, tmp_path / "c", kwargs={"size": "x"})
    with pytest.raises(SourceError, match=r"factory\(wrong=1\) raised TypeError"):
        build("tests.builder.sources:factory", tmp_path / "c", kwargs={"wrong": 1})
    leaves_nothing()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"layout": "sorted"}, "'shuffled', 'source' or 'window'"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"codec": "gzip"}, "codec 'gzip'"),
        ({"codec": "zstd:23"}, "-50..22"),
        ({"codec": "zstd:-51"}, "-50..22"),
        ({"codec": "zstd:fast"}, "LEVEL"),
        ({"codec": {"image": "lz4"}}, "codec 'lz4'"),
        ({"codec": {"image": 3}}, "must be a string"),
        ({"codec": 3}, "must be a string"),
        ({"block_bytes": 0}, "block_bytes"),
        ({"block_bytes": "1MiB"}, "block_bytes"),
        ({"num_workers": -1}, "num_workers"),
        ({"num_workers": 1.0}, "num_workers"),
        ({"if_exists": "overwrite"}, "if_exists"),
    ],
)
def test_an_option_without_sense_is_refused_before_a_sample_is_read(options, what, tmp_path, leaves_nothing):
    dataset = factory()
    with pytest.raises(UsageError, match=what):
        build(dataset, tmp_path / "c", **options)
    assert dataset.reads == {}
    leaves_nothing()


def test_an_option_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(TypeError, match="shuffle"):
        build([1], tmp_path / "c", shuffle=True)


def test_a_codec_for_a_column_that_does_not_exist_names_those_that_do(tmp_path, leaves_nothing):
    with pytest.raises(UsageError, match=r"'picture'.* boxes, extra.*image, label, text"):
        build(factory(), tmp_path / "c", codec={"picture": "none"})
    leaves_nothing()


class TestAnExistingPath:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        build([1, 2, 3], tmp_path / "c")
        return tmp_path / "c"

    def test_a_cache_is_not_touched_unasked(self, path):
        before, dataset = digests(path), factory()
        with pytest.raises(CacheExistsError, match=r"a cache is here already; if_exists='open' or 'replace'"):
            build(dataset, path)
        assert (digests(path), dataset.reads) == (before, {})

    def test_open_returns_the_cache_that_is_there(self, path):
        before, dataset = digests(path), factory()
        cache = build(dataset, path, if_exists="open")
        assert (len(cache), digests(path), dataset.reads) == (3, before, {})

    def test_replace_swaps_it_for_the_new_one(self, path, tmp_path):
        old = shardcache.open(path)
        assert old[0] == 1
        assert list(build([7, 8], path, if_exists="replace")) == [7, 8]
        assert list(old) == [1, 2, 3][: len(old)]
        del old
        assert list(build([9], path, if_exists="replace")) == [9]
        assert [file.name for file in tmp_path.iterdir()] == ["c"]

    def test_a_build_that_fails_leaves_what_was_to_be_replaced(self, path):
        before = digests(path)
        with pytest.raises(UnsupportedTypeError):
            build([Thing()], path, if_exists="replace")
        assert digests(path) == before

    def test_replace_follows_a_link(self, path, tmp_path):
        (tmp_path / "link").symlink_to(path)
        assert list(build([7], tmp_path / "link", if_exists="replace")) == [7]
        assert (tmp_path / "link").is_symlink()
        assert list(shardcache.open(path)) == [7]

    @pytest.mark.parametrize("if_exists", ["error", "open", "replace"])
    def test_what_is_not_a_cache_is_never_replaced(self, if_exists, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "precious").write_text("data")
        (tmp_path / "file").write_text("data")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        dataset = factory()
        for name in ("folder", "file", "link"):
            with pytest.raises(CacheExistsError, match="something else is here already"):
                build(dataset, tmp_path / name, if_exists=if_exists)
        assert (tmp_path / "folder" / "precious").read_text() == "data"
        assert (tmp_path / "file").read_text() == "data"
        assert dataset.reads == {}

    def test_an_empty_directory_is_used(self, tmp_path):
        (tmp_path / "empty").mkdir()
        assert list(build([5], tmp_path / "empty")) == [5]

    def test_directories_on_the_way_are_made(self, tmp_path):
        assert list(build([5], tmp_path / "a" / "b" / "c")) == [5]

    def test_what_appears_during_the_build_is_not_overwritten_and_the_work_not_lost(self, tmp_path):
        target = tmp_path / "c"

        def make(i: int) -> int:
            if i == 200:
                target.mkdir(exist_ok=True)
                (target / "precious").write_text("data")
            return i

        with pytest.raises(CacheExistsError, match="something appeared here"):
            build(Made(400, make), target)
        assert (target / "precious").read_text() == "data"
        (target / "precious").unlink()
        again = Made(400, lambda i: i)
        assert list(build(again, target)) == list(range(400))
        assert len(again.reads) < 400  # only what decides about the plan


@pytest.mark.parametrize("path", ["file/c", "x" * 300, "/proc/nothing/can/be/written/here"])
def test_a_path_that_cannot_be_written_is_told_before_a_sample_is_read(path, tmp_path):
    (tmp_path / "file").write_text("")
    dataset = factory()
    with pytest.raises(StorageError, match="cannot be written"):
        build(dataset, tmp_path / path)
    assert dataset.reads == {}
