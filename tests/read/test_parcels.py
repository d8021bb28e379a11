"""Lists of bytes, texts and tensors from worker to consumer: what arrives is what was sent, whichever way it took."""

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import shardcache
from shardcache import CachedDataset
from shardcache.read import messages, parcels
from shardcache.read.ring import Rings
from shardcache.read.transport import transport
from tests import strategies
from tests.exact import exact
from tests.read.sources import Mapped, Source, load

pytestmark = strategies.QUIET

BIG = parcels.LEAST_BYTES
TEXTS = ["", "plain", "\u00fc\u00df", "\u65e5\u672c", "\U0001f600", "\ud800", "\udc00\ud800", "\x00"]


def sent(content: Any, slots: int = 4) -> Any:
    """What arrives of a message, here in one process; its pickle holds nothing that went through the ring."""
    rings = Rings(slots)
    payload = messages.pack(rings, (0, content))
    found = pickle.loads(payload)[1]
    return found, len(payload)


@pytest.mark.parametrize(
    "values",
    [
        [b"", b"a" * BIG, b"\x00\xff", b""],
        [None, b"a" * BIG, None, b"b"],
        [text * BIG for text in TEXTS],
        [None, "x" * BIG, None],
        [b"12345678"] * BIG,
        ["\u00fc"] * BIG,
    ],
)
def test_bytes_and_texts_arrive_by_the_ring_to_the_bit(values: list[Any]) -> None:
    found, size = sent({"x": values, "y": 1})
    assert found == {"x": values, "y": 1}
    assert type(found["x"]) is list
    assert size < 9 * len(values) + 1000


@given(st.lists(st.none() | st.binary(max_size=40)) | st.lists(st.none() | st.text(max_size=40)))
def test_any_list_of_them_arrives(values: list[Any]) -> None:
    big = [*values, ("x" if any(type(value) is str for value in values) else b"x") * BIG]
    assert sent(big)[0] == big
    assert sent(values)[0] == values


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.int64, torch.complex64, torch.uint16])
def test_tensors_of_any_shapes_arrive_by_the_ring_to_the_bit(dtype: torch.dtype) -> None:
    shapes = [(3, 5), (), (0,), (2, 0, 4), (BIG,), (1, 1)]
    tensors = [torch.randint(0, 2, shape).to(dtype) for shape in shapes]
    found, size = sent((tensors, "rest"))
    assert exact(found) == exact((tensors, "rest"))
    assert size < 2000
    found[0][0].fill_(1)  # ordinary tensors, each by itself
    assert exact(found[0][1:]) == exact(tensors[1:])


def test_what_is_more_than_its_bytes_goes_as_before() -> None:
    wide = torch.randn(BIG)
    for tensors in (
        [wide, wide.double()],
        [wide.clone().requires_grad_(), wide],
        [torch.randn(2, BIG).t(), wide],
        [torch.randn(BIG, dtype=torch.complex64).conj(), torch.randn(BIG, dtype=torch.complex64)],
    ):
        found, _ = sent(tensors)
        assert [value.requires_grad for value in found] == [value.requires_grad for value in tensors]
        assert all(map(torch.equal, found, tensors))


class Words(list[str]):
    """A list of somebody's own."""


def test_structures_around_them_stay_what_they_are() -> None:
    texts = ["x" * BIG, "y"]
    content = {"a": (texts, [texts, {"b": texts}]), "c": Words(texts), "d": OrderedDict(e=texts), "f": [1, b"z", "q"]}
    found, _ = sent(content)
    assert found == content
    assert found["a"][0] is found["a"][1][0] is found["a"][1][1]["b"]
    assert type(found["c"]) is Words
    assert type(found["d"]) is OrderedDict
    endless: list[Any] = [texts]
    endless.append(endless)
    found, _ = sent(endless)
    assert found[0] == texts
    assert len(found) == 2


def test_what_does_not_fit_into_the_ring_goes_through_the_pipe() -> None:
    rings = Rings(1)
    kept = [rings.take(1 << 20), rings.take(1 << 20)]
    values = {"b": [b"a" * BIG, None], "t": ["\u00fc" * BIG, "\ud800"], "n": [torch.ones(BIG), torch.zeros(3)]}
    payload = messages.pack(rings, (0, values))
    assert len(payload) > 4 * BIG
    found = pickle.loads(payload)[1]
    assert exact(found) == exact(values)
    del kept


class Lists(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        transport("auto")
        for number in range(20):
            yield [[str(number) * BIG, None, "\u00fc"], [bytes([number]) * (BIG + number)]]


def test_a_consumer_may_keep_what_it_gets_since_it_is_its_own() -> None:
    found = list(DataLoader(Lists(), batch_size=None, num_workers=1, collate_fn=list))
    for number, (texts, data) in enumerate(found):
        assert texts == [str(number) * BIG, None, "\u00fc"]
        assert data == [bytes([number]) * (BIG + number)]


class Pages(Source):
    """Texts and files of up to some thousand bytes, and texts or None; ``long``: one of them lies by itself."""

    size = 90

    def __init__(self, long: bool = False) -> None:
        super().__init__()
        self.long = long

    def __getitem__(self, index: int) -> Any:
        letters = "abc" if index < 45 else "a\u00fc\u65e5\U0001f600"
        text = letters * (index % 31 * 20)
        data = bytes([index]) * (9_000_000 if self.long and index == 7 else index % 29 * 300)
        return {"text": text, "data": data, "maybe": text if index % 3 else None, "number": index}


def seen(batch: Any) -> Any:
    """What the user's code gets is lists, in a worker as well."""
    assert {type(batch[name]) for name in ("text", "data", "maybe")} == {list}
    assert {type(value) for name in ("text", "data") for value in batch[name]} == {str, bytes}
    return batch


@pytest.mark.parametrize("options", [{}, {"codec": "none"}, {"codec": "none", "block_bytes": 1}])
def test_texts_and_files_are_the_same_by_every_way_from_a_cache(tmp_path: Path, options: dict[str, Any]) -> None:
    source = Pages(long="block_bytes" in options)
    options = {"block_bytes": 9000, "num_workers": 0, **options}
    cache = shardcache.build(source, tmp_path / "cache", progress=False, **options)
    for io in ("mmap", "pread"):

        def dataset(io: str = io) -> CachedDataset:
            return CachedDataset(cache, batch_size=16, shuffle=True, io=io)

        in_process = [seen(batch) for batch in dataset()]
        samples = [
            dict(zip(batch, row, strict=True)) for batch in in_process for row in zip(*batch.values(), strict=True)
        ]
        assert sorted(int(sample["number"]) for sample in samples) == list(range(len(source)))
        assert all(sample == source[int(sample["number"])] for sample in samples)
        for sent in (
            DataLoader(dataset(), batch_size=None, num_workers=2),
            DataLoader(dataset(), batch_size=None, num_workers=1, collate_fn=seen),
            load(Mapped(dataset(), seen), 1),
            dataset().loader(1),
        ):
            assert [repr(seen(batch)) for batch in sent] == [repr(batch) for batch in in_process]
