"""What a batch holds: tensors, lists, padded tensors."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import shardcache
from shardcache import Cache, CachedDataset, Pad, Padded, ShardCacheWarning, StructureError, UsageError
from tests.read.sources import SOURCES, Source, exhaust, load

CacheOf = Callable[..., Cache]


def texts(cache_of: CacheOf, **options: Any) -> CachedDataset:
    return CachedDataset(cache_of("texts"), **{"batch_size": 16, "order": "stored", "with_meta": True, **options})


def same(sample: Any) -> Any:
    return sample


class TestPolicies:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("transform", [None, same, {"number": same}], ids=["plain", "transformed", "by column"])
    def test_padding_makes_one_tensor_and_the_lengths(self, cache_of: CacheOf, transform: Any, workers: int) -> None:
        data = texts(cache_of, collate={"tokens": "pad", "wave": Pad(-1)}, columns=["tokens", "wave"])
        if transform is not None:
            data = texts(cache_of, collate={"tokens": "pad", "wave": Pad(-1)}, transform=transform)
        for batch, meta in load(data, workers):
            samples = [SOURCES["texts"][index] for index in meta.index.tolist()]
            for name, value in (("tokens", 0), ("wave", -1)):
                data, lengths = batch[name]
                assert type(batch[name]) is Padded
                rows = [torch.as_tensor(sample[name]) for sample in samples]
                assert data.dtype is rows[0].dtype
                assert data.shape[1] == max(len(row) for row in rows)
                for number, row in enumerate(rows):
                    assert torch.equal(data[number, : len(row)].double(), row.double())
                    assert (data[number, len(row) :].double() == value).all()
                expected = [len(row) if row.dim() == 1 else list(row.shape) for row in rows]
                assert lengths.tolist() == expected
                assert lengths.dtype is torch.int64

    def test_sizes_are_rounded_up_to_a_multiple(self, cache_of: CacheOf) -> None:
        for batch, _ in texts(cache_of, collate={"tokens": Pad(7, multiple_of=8), "wave": "list"}):
            assert batch["tokens"].data.shape[1] % 8 == 0
            assert type(batch["wave"]) is list

    def test_one_policy_is_for_all_columns_that_vary(self, cache_of: CacheOf) -> None:
        batch, _ = next(iter(texts(cache_of, collate="pad")))
        assert type(batch["tokens"]) is type(batch["wave"]) is Padded
        assert type(batch["text"]) is list
        assert type(batch["number"]) is torch.Tensor

    def test_empty_rows_alone_are_padded_too(self, cache_of: CacheOf) -> None:
        class Empty(Source):
            size = 4

            def __getitem__(self, index: int) -> Any:
                return torch.empty(index % 2, 3)

        assert Pad()("x", [torch.empty(0, 3), torch.empty(0, 3)]).data.shape == (2, 0, 3)
        assert Pad(multiple_of=4)("x", [torch.empty(0)]).data.shape == (1, 0)

    @pytest.mark.parametrize("policy", ["pads", 3, ["pad"], {"tokens": "stack"}, {"tokens": 1}])
    def test_an_unknown_policy_is_refused_with_those_that_there_are(self, cache_of: CacheOf, policy: Any) -> None:
        with pytest.raises(UsageError, match=r"collate must be 'list', 'pad' or Pad\(value, multiple_of=...\)"):
            texts(cache_of, collate=policy)

    def test_a_column_that_is_not_there_is_refused(self, cache_of: CacheOf) -> None:
        with pytest.raises(
            UsageError, match=r"collate for 'audio': there is no such column; the columns are data, number"
        ):
            texts(cache_of, collate={"audio": "pad"})

    @pytest.mark.parametrize("multiple", [0, -8, 2.5, True])
    def test_a_multiple_that_has_no_sense_is_refused(self, multiple: Any) -> None:
        with pytest.raises(UsageError, match="multiple_of must be 1 or more"):
            Pad(0, multiple)

    @pytest.mark.parametrize("value", ["x", None, torch.tensor(1)])
    def test_a_value_that_is_no_number_is_refused(self, value: Any) -> None:
        with pytest.raises(UsageError, match="Pad: value must be a number"):
            Pad(value)

    @pytest.mark.parametrize("value", [-1, 300, 1.5, float("nan")])
    def test_a_value_that_the_dtype_cannot_hold_is_refused(self, value: float) -> None:
        with pytest.raises(UsageError, match=f"column 'x': uint8 cannot be padded with {value}"):
            Pad(value)("x", [torch.zeros(2, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)])
        assert Pad(255)("x", [torch.zeros(1, dtype=torch.uint8)]).data.dtype is torch.uint8
        assert Pad(0.1)("x", [torch.zeros(1), torch.zeros(2)]).data[0].tolist() == torch.tensor([0, 0.1]).tolist()

    @pytest.mark.parametrize("column", ["text", "data"])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_what_cannot_be_padded_is_an_error_that_names_the_column(
        self, cache_of: CacheOf, column: str, workers: int
    ) -> None:
        with pytest.raises((StructureError, UsageError), match=f"column '{column}' cannot be padded"):
            exhaust(load(texts(cache_of, columns=[column], collate={column: "pad"}), workers))

    def test_optional_values_cannot_be_padded(self, cache_of: CacheOf) -> None:
        with pytest.raises((StructureError, UsageError), match="column 'mask' cannot be padded"):
            list(CachedDataset(cache_of("detections"), batch_size=50, order="stored", collate={"mask": "pad"}))


class TestVaryingShapes:
    def test_are_said_once_with_what_to_write(self, cache_of: CacheOf) -> None:
        with pytest.warns(
            ShardCacheWarning, match=r"'tokens', 'wave' varies: batches hold a list; .*collate=\{'tokens': 'pad'"
        ):
            texts(cache_of)

    @pytest.mark.parametrize(
        "options",
        [{"collate": "list"}, {"columns": ["number"]}, {"batch_size": None}, {"transform": same}],
        ids=["collate", "columns", "samples", "transform"],
    )
    def test_are_not_mentioned_where_they_do_not_matter(self, cache_of: CacheOf, options: Any) -> None:
        texts(cache_of, **options)

    def test_in_one_block_alone_make_the_whole_column_a_list(self, tmp_path: Any) -> None:
        class Late(Source):
            size = 400

            def __getitem__(self, index: int) -> torch.Tensor:
                return torch.full((3 if index == 211 else 2,), index)

        cache = shardcache.build(Late(), tmp_path / "late", block_bytes=100, progress=False)
        for batch in CachedDataset(cache, batch_size=8, order="stored", collate="list"):
            assert type(batch) is list


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.fixture
def batch_of(cache_of: CacheOf) -> Callable[..., Any]:
    """The batch that is made where a transform returns these samples."""

    def make(*samples: Any, collate: Any = None) -> Any:
        def transform(sample: Any) -> Any:
            return samples[sample[0]]

        data = CachedDataset(
            cache_of("numbers", "source"), batch_size=len(samples), transform=transform, collate=collate
        )
        return next(iter(data))

    return make


class TestTransformed:
    """What a transform returns, made a batch."""

    def test_samples_keep_their_structure(self, batch_of: Callable[..., Any]) -> None:
        found = batch_of(*[{"a": (number, [1.0, "x"]), "b": Pair(True, None)} for number in range(3)])
        assert found["a"][0].tolist() == [0, 1, 2]
        assert found["a"][1] == [[1.0, "x"]] * 3
        assert found["b"].left.dtype is torch.bool
        assert type(found["b"]) is Pair
        assert found["b"].right == [None, None, None]
        ordered = batch_of(OrderedDict(b=1, a=2), OrderedDict(b=3, a=4))
        assert type(ordered) is OrderedDict
        assert list(ordered) == ["b", "a"]

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ([1, 2], torch.int64),
            ([1.0, 2.0], torch.float64),
            ([True, False], torch.bool),
            ([np.float32(1), np.float32(2)], torch.float32),
            ([np.uint16(1), np.uint16(2)], torch.uint16),
            ([np.zeros(2, ">i2"), np.ones(2, ">i2")], torch.int16),
            ([torch.zeros(2, dtype=torch.bfloat16)] * 2, torch.bfloat16),
        ],
        ids=str,
    )
    def test_numbers_and_arrays_become_tensors(
        self, batch_of: Callable[..., Any], values: Any, dtype: torch.dtype
    ) -> None:
        found = batch_of(*values)
        assert found.dtype is dtype
        assert found.shape[0] == 2

    @pytest.mark.parametrize(
        "values",
        [["a", "b"], [b"a", b"b"], [None, None], [1, None], [1, 2.0], [np.zeros(2, "M8[s]")] * 2, [{"a": 1}, {"b": 1}]],
        ids=str,
    )
    def test_anything_else_becomes_a_list(self, batch_of: Callable[..., Any], values: Any) -> None:
        found = batch_of(*values)
        assert type(found) is list
        assert all(one is other for one, other in zip(found, values, strict=True))

    def test_a_flipped_array_and_one_that_cannot_be_written_become_tensors(self, batch_of: Callable[..., Any]) -> None:
        flipped, frozen = np.arange(6).reshape(2, 3)[:, ::-1], np.frombuffer(b"abc", np.uint8)
        assert batch_of({"x": flipped, "y": frozen})["x"].tolist() == [[[2, 1, 0], [5, 4, 3]]]
        assert batch_of({"x": flipped, "y": frozen})["y"].tolist() == [[97, 98, 99]]

    def test_long_doubles_become_a_list(self, batch_of: Callable[..., Any]) -> None:
        values = [np.longdouble(1), np.longdouble(2)]
        assert batch_of(*values) == values
        assert batch_of(*({"x": np.full(2, value)} for value in values))["x"][1].dtype == np.longdouble

    def test_ints_beyond_64_bits_are_an_error_that_says_what_to_write(self, batch_of: Callable[..., Any]) -> None:
        with pytest.raises(UsageError, match=r"column 'x': .*ints beyond 64 bits.*say collate=\{'x': 'list'\}"):
            batch_of({"x": 1}, {"x": 1 << 63})
        assert batch_of({"x": 1}, {"x": 1 << 63}, collate={"x": "list"})["x"] == [1, 1 << 63]

    def test_different_shapes_or_dtypes_are_an_error_and_never_a_list_by_chance(
        self, batch_of: Callable[..., Any]
    ) -> None:
        for other in (torch.zeros(3), torch.zeros(2, dtype=torch.int32)):
            with pytest.raises(UsageError, match=r"column 'x': the transform returned tensors of .*say collate="):
                batch_of({"x": torch.zeros(2)}, {"x": other})

    @pytest.mark.parametrize("value", [(1, 2), {"a": 1}, Pair(1, 2), None, 1, torch.zeros(2)], ids=str)
    def test_what_is_to_be_a_list_is_one_also_where_all_samples_of_a_batch_are_alike(
        self, batch_of: Callable[..., Any], value: Any
    ) -> None:
        found = batch_of({"x": value}, {"x": value}, collate={"x": "list"})["x"]
        assert type(found) is list
        assert all(one is value for one in found)

    def test_policies_go_by_name(self, batch_of: Callable[..., Any]) -> None:
        samples = [{"m": {"x": torch.zeros(n)}} for n in (1, 3)]
        assert type(batch_of(*samples, collate={"m/x": "list"})["m"]["x"]) is list
        assert batch_of(*samples, collate={"m/x": Pad(multiple_of=4)})["m"]["x"].data.shape == (2, 4)
        assert type(batch_of({"x": torch.zeros(2)}, {"x": torch.ones(2)}, collate={"x": "list"})["x"]) is list
