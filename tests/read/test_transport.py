"""The batch ring in the ordinary DataLoader: whatever users do with batches, what arrives is what was made."""

import copy
import io
import multiprocessing
import os
import pickle
import random
import resource
import subprocess
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardcache.errors import UsageError
from shardcache.read import messages
from shardcache.read.transport import TorchTransport, transport


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ring's way fails another one follows, which would hide that; a forked worker inherits this."""
    plain = messages._plain

    def refuse(content: Any) -> bytes:
        assert isinstance(content[1], ExceptionWrapper), "the ring's way failed"
        return plain(content)

    monkeypatch.setattr(messages, "_plain", refuse)


Pair = namedtuple("Pair", "tag half")
Transform = Callable[[Any], Any]


def pattern(worker: int, number: int, count: int) -> Tensor:
    """What the bytes of batch `number` of `worker` must be."""
    period = (torch.arange(251) * 7 + worker * 31 + number) % 251
    return period.to(torch.uint8).repeat(count // 251 + 1)[:count]


class Batches(IterableDataset[Any]):
    """Batches that say what they must hold: a dict of a matrix, a named tuple and a list of rows."""

    def __init__(self, count: int = 12, kind: Any = "auto", width: int = 640) -> None:
        self.count, self.kind, self.width = count, kind, width

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = info.id if info else 0
        source = transport(self.kind)
        for number in range(self.count):
            image, tag, half, flat = source.batch(
                [
                    (torch.uint8, (8, self.width)),
                    (torch.int64, (2,)),
                    (torch.bfloat16, ()),
                    (torch.int32, (60,)),
                ]
            )
            image.copy_(pattern(worker, number, image.numel()).view(image.shape))
            tag.copy_(torch.tensor([worker, number]))
            half.fill_(number)
            flat.copy_(pattern(worker, number, 60))
            rows = source.rows(flat, [0, 10, 10, 40, 60], [(10,), (0,), (5, 6), (4, 5)])
            yield {"image": image, "rest": (Pair(tag, half), rows)}


def check(batch: Any) -> tuple[int, int]:
    """Whether a batch is whole; which one it is."""
    (tag, half), rows = batch["rest"]
    worker, number = tag.tolist()
    image = batch["image"]
    assert all(type(tensor) is Tensor for tensor in (image, tag, half, *rows))
    assert torch.equal(image, pattern(worker, number, image.numel()).view(image.shape))
    assert half.dtype is torch.bfloat16
    assert torch.equal(half, torch.tensor(number, dtype=torch.bfloat16))
    assert [tuple(row.shape) for row in rows] == [(10,), (0,), (5, 6), (4, 5)]
    assert torch.equal(torch.cat([row.reshape(-1) for row in rows]), pattern(worker, number, 60).to(torch.int32))
    return worker, number


def everything(count: int, workers: int) -> list[tuple[int, int]]:
    return [(worker, number) for number in range(count) for worker in range(workers)]


def load(data: IterableDataset[Any], workers: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None, num_workers=workers, **options)


class Each(IterableDataset[Any]):
    """Another data set around it, as users write them."""

    def __init__(self, data: Batches, transform: Transform) -> None:
        self.data, self.transform = data, transform

    def __iter__(self) -> Iterator[Any]:
        return map(self.transform, self.data)


def in_ring(tensor: Tensor) -> bool:
    """Whether a tensor of this process lies in a ring."""
    ranges = [line.split()[0].split("-") for line in ring_maps()]
    return any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in ranges)


def ring_maps() -> list[str]:
    """The rings that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:shardcache-batches" in line]


@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_batches_arrive_in_order_for_two_epochs_however_workers_start(method: str, persistent: bool) -> None:
    workers = 2 if method == "fork" else 1
    loader = load(Batches(), workers, multiprocessing_context=method, persistent_workers=persistent)
    for _ in range(2):
        arrived, ringed = [], 0
        for batch in loader:
            arrived.append(check(batch))
            ringed += in_ring(batch["image"])
        assert arrived == everything(12, workers)
        assert ringed == 12 * workers


def test_without_workers_or_on_request_tensors_are_ordinary_ones() -> None:
    assert [check(batch) for batch in load(Batches(), 0)] == everything(12, 1)
    batches = list(load(Batches(kind="torch"), 2))
    assert [check(batch) for batch in batches] == everything(12, 2)
    assert all(batch["image"].is_shared() for batch in batches)
    assert isinstance(transport("auto"), TorchTransport)
    with pytest.raises(UsageError, match="'auto' or 'torch', not 'gpu'"):
        transport("gpu")


def test_a_consumer_may_keep_every_batch() -> None:
    kept = list(load(Batches(100, width=4096)))
    assert [check(batch) for batch in kept] == everything(100, 2)
    ringed = sum(in_ring(batch["image"]) for batch in kept)
    assert 16 <= ringed <= 64  # the ring is bounded; the others came through the pipe


def test_what_a_consumer_keeps_is_never_overwritten_while_others_come_and_go() -> None:
    chance = random.Random(1)
    kept: list[Any] = []
    numbers = []
    for batch in load(Batches(300), prefetch_factor=5):
        numbers.append(check(batch))
        image, rows, tag = batch["image"], batch["rest"][1], batch["rest"][0].tag
        part = chance.choice([image[3], image[:, 5:9], image.t()[7:], rows[3], rows[2][1:, ::2], tag, image.numpy()])
        kept.append((part, copy.deepcopy(part)))
        if len(kept) > 30:
            kept.pop(chance.randrange(len(kept)))
        assert all((seen == copied).all() for seen, copied in kept)
    assert numbers == everything(300, 2)


@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
def test_leaving_an_epoch_early_does_no_harm_to_the_next(persistent: bool) -> None:
    loader = load(Batches(40), persistent_workers=persistent)
    for stop in (1, 5, 17):
        for step, batch in enumerate(loader):
            assert check(batch) == (step % 2, step // 2)
            if step == stop:
                break
    assert [check(batch) for batch in loader] == everything(40, 2)


def test_several_loaders_at_once_do_not_meet() -> None:
    loaders = [load(Batches(20), persistent_workers=persistent) for persistent in (False, True, False)]
    for _ in range(2):
        steps = 0
        for step, batches in enumerate(zip(*loaders, strict=True)):
            assert [check(batch) for batch in batches] == [(step % 2, step // 2)] * 3
            if step == 10:
                assert [check(batch) for batch in load(Batches(20))] == everything(20, 2)
            steps += 1
        assert steps == 40


@pytest.mark.parametrize("pin", [Tensor.clone, Tensor.detach], ids=["copies", "passes on"])
@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
def test_batches_may_be_received_by_the_thread_that_pins_memory(
    monkeypatch: pytest.MonkeyPatch, pin: Callable[[Tensor], Tensor], persistent: bool
) -> None:
    """torch's own thread and loop; only the accelerator is made up."""
    accelerator = pytest.importorskip("torch.accelerator")
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    monkeypatch.setattr(accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(accelerator, "current_accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, device=None: pin(tensor))
    loader = load(Batches(60), pin_memory=True, persistent_workers=persistent)
    for _ in range(2):
        iterator: Any = iter(loader)
        assert iterator._pin_memory_thread.is_alive()
        assert [check(batch) for batch in iterator] == everything(60, 2)
        kept = list(loader)
        assert [check(batch) for batch in kept] == everything(60, 2)
        del kept, iterator


def shortcuts(batch: Any) -> Any:
    image, (pair, rows) = batch["image"], batch["rest"]
    return {
        "whole": batch,
        "again": image,
        "row": image[3],
        "columns": image[:, 5:9],
        "turned": image.t(),
        "steps": image[::2, 1::3],
        "other type": image.view(torch.int32),
        "spread": pair.half.expand(4, 5),
        "sum": image.long() + pair.tag[1],
        "picture": image.view(8, 8, 8, -1).permute(0, 3, 1, 2).float(),
        "rows back to front": rows[::-1],
        "some rows": rows[2:],
        "stacked": torch.stack([image, image]),
        "array": image.numpy(),
    }


def test_whatever_a_wrapper_makes_of_a_batch_arrives() -> None:
    count = 0
    for batch in load(Each(Batches(40), shortcuts)):
        check(batch["whole"])
        expected = shortcuts(batch["whole"])
        del expected["whole"]
        for key, value in expected.items():
            assert type(batch[key]) is (Tensor if key == "array" else type(value))
            torch.testing.assert_close(batch[key], torch.as_tensor(value) if key == "array" else value, rtol=0, atol=0)
        assert batch["turned"].stride() == expected["turned"].stride()
        assert batch["spread"].stride() == (0, 0)
        assert batch["picture"].stride() == expected["picture"].stride()
        assert batch["again"].data_ptr() == batch["whole"]["image"].data_ptr() == batch["row"].data_ptr() - 3 * 640
        assert in_ring(batch["picture"])  # a result of 20 KB, made in memory of its own
        count += 1
    assert count == 80


def swap(batch: Any) -> Any:
    """Change where a tensor's data lies, in place: it still is the same object."""
    image = batch["image"]
    image.data = image.clone()
    batch["rest"][1][3].set_(batch["rest"][1][3].clone())
    image.add_(0)
    batch["rest"][0].half.requires_grad_().requires_grad_(False)
    return batch


def test_a_tensor_that_was_moved_arrives_from_where_it_is() -> None:
    assert [check(batch) for batch in load(Each(Batches(40), swap))] == everything(40, 2)


def test_a_collate_fn_sees_batches_and_its_result_arrives() -> None:
    loader = load(Batches(), collate_fn=lambda batch: [batch, batch["image"].float()])
    for batch, image in loader:
        check(batch)
        assert torch.equal(image, batch["image"].float())


class Hoarder(IterableDataset[Any]):
    """A wrapper that keeps what it has sent, and sends it again."""

    def __init__(self, kept: int) -> None:
        self.kept = kept

    def __iter__(self) -> Iterator[Any]:
        kept: list[Any] = []
        for batch in Batches(60):
            kept = [*kept[-self.kept + 1 :], batch]
            yield list(kept)


@pytest.mark.parametrize("kept", [2, 25])
def test_a_worker_may_keep_batches_and_send_them_again(kept: int) -> None:
    """25 are more than the ring has room for."""
    received: list[Any] = []
    for step, batches in enumerate(load(Hoarder(kept), 1)):
        assert [check(batch)[1] for batch in batches] == list(range(max(0, step - kept + 1), step + 1))
        received = [*received[-10:], batches]
        for batch in (batch for batches in received for batch in batches):
            check(batch)


def ordinary(batch: Any) -> Any:
    """What a transform may expect of a tensor, asserted where transforms run."""
    image = batch["image"]
    before = image.clone()
    assert type(image) is Tensor
    results = [image + 1, image[2:], image.clone(), image.view(-1), image.t(), torch.stack([image]), image.float()]
    results += [copy.deepcopy(image), pickle.loads(pickle.dumps(image)), *image.unbind(), image.detach().add_(0)]
    assert all(type(result) is Tensor for result in results)
    assert image.untyped_storage().nbytes() == image.nbytes
    file = io.BytesIO()
    torch.save(image, file)
    assert file.tell() < 2 * image.nbytes
    assert image.view(-1).resize_(4, 4).shape == (4, 4)
    with pytest.raises(RuntimeError, match="not resizable"):
        image.view(-1).resize_(1 << 20)
    multiprocessing.SimpleQueue().put(batch["rest"][0].tag)  # another pickler of multiprocessing, nobody reads it
    image.mul_(1)
    image.numpy()[:] += 0
    assert torch.equal(image, before)
    return batch


def test_a_transform_sees_ordinary_tensors() -> None:
    assert [check(batch) for batch in load(Each(Batches(30), ordinary))] == everything(30, 2)


def test_received_tensors_are_ordinary_too() -> None:
    kept = []
    for batch in load(Batches(40, width=64), 1):
        copies = [copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))]
        kept += copies
        image, row = batch["image"], batch["rest"][1][2]
        assert image.untyped_storage().nbytes() == image.nbytes
        for tensor in (image.view(torch.float16), row.view(torch.float32)):
            factor = torch.ones(tensor.shape, requires_grad=True)
            tensor.zero_()
            tensor.mul_(factor).sum().backward()
            assert factor.grad is not None
        assert tuple(row[0].fill_(7).tolist()) == (7,) * 6
        queue: Any = multiprocessing.SimpleQueue()
        queue.put(batch["rest"][0].tag)
        assert torch.equal(queue.get(), batch["rest"][0].tag)
    assert [check(batch)[1] for batch in kept] == [number // 2 for number in range(80)]


DTYPES = """bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64
    complex32 complex64 complex128 float8_e4m3fn float8_e5m2""".split()


class EveryType(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        shapes = [(getattr(torch, name), shape) for name in DTYPES for shape in ((3, 5), (), (0,), (2, 0, 3), (1,))]
        for number in range(12):
            tensors = transport("auto").batch(shapes)
            for tensor in tensors:
                raw = tensor.view(-1).view(torch.uint8)
                raw.copy_(pattern(0, number, raw.numel()) % 2)
            yield tensors


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_and_shape_arrives_bit_for_bit() -> None:
    numbers = 0
    for number, tensors in enumerate(load(EveryType(), 1)):
        shapes = iter(tensors)
        for name in DTYPES:
            for shape in ((3, 5), (), (0,), (2, 0, 3), (1,)):
                tensor = next(shapes)
                assert tensor.dtype is getattr(torch, name)
                assert tuple(tensor.shape) == shape
                raw = tensor.view(-1).view(torch.uint8)
                assert torch.equal(raw, (pattern(0, number, raw.numel()) % 2).to(torch.uint8))
        numbers += 1
    assert numbers == 12


def unusual(batch: Any) -> Any:
    tag = batch["rest"][0].tag
    return {
        "batch": batch,
        "gradient": tag.double().requires_grad_(),
        "gradient in the ring": batch["rest"][0].half.requires_grad_(),
        "parameter": torch.nn.Parameter(batch["image"].float()),
        "sparse": torch.eye(3).to_sparse() * tag[1],
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "imaginary": torch.tensor([1 + 2j]).conj().imag,
        "shared": torch.full((5,), 3.0).share_memory_(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "large and shared": tag.repeat(5000).share_memory_(),
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse")
def test_tensors_that_are_more_than_their_bytes_arrive_too() -> None:
    steps = 0
    for got in load(Each(Batches(10), unusual), 1):
        check(got["batch"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = unusual(got["batch"])
        assert got["gradient"].requires_grad
        assert type(got["parameter"]) is torch.nn.Parameter
        assert got["sparse"].is_sparse
        assert got["shared"].is_shared()
        assert got["large and shared"].is_shared()
        for key in expected.keys() - {"batch"}:
            parts = [(got[key], expected[key])]
            if key == "nested":
                parts = list(zip(got[key].unbind(), expected[key].unbind(), strict=True))
            elif key == "sparse":
                parts = [(got[key].to_dense(), expected[key].to_dense())]
            assert all(torch.equal(one, other) for one, other in parts), key
        steps += 1
    assert steps == 10


class Growing(IterableDataset[Any]):
    """Batches of very different sizes; the largest are more than any ring before them could hold."""

    sizes = [100, 5000, 300, 300_000, 20, 100_000, 900_000, 900_000, 50, 8_000_000, 7] * 2

    def __iter__(self) -> Iterator[Any]:
        for number, size in enumerate(self.sizes):
            (tensor,) = transport("auto").batch([(torch.uint8, (size,))])
            tensor.copy_(pattern(0, number, size))
            yield tensor


def test_batches_of_any_size_arrive_and_outgrown_rings_are_dropped() -> None:
    loader = load(Growing(), 1, persistent_workers=True)
    before = len(ring_maps())
    for keep in (True, False):
        kept: list[Any] = []
        for number, tensor in enumerate(loader):
            kept = [*kept, (number, tensor)] if keep else [(number, tensor)]
            assert torch.equal(tensor, pattern(0, number, Growing.sizes[number]))
        assert all(torch.equal(kept, pattern(0, n, len(kept))) for n, kept in kept)
        del tensor, kept
        assert len(ring_maps()) == before + 1


def apart(batch: Any) -> Any:
    """Hundreds of tensors, each with memory of its own, as transforms of samples make them."""
    return batch, [torch.full((25,), k) for k in range(400)], [torch.full((5000,), k) for k in range(40)]


def test_lists_of_many_tensors_do_not_need_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 80, hard))
    try:
        for keep in (False, True):
            kept: list[Any] = []
            for batch, small, larger in load(Each(Batches(20), apart), 1):
                check(batch)
                assert [int(tensor[0]) for tensor in (*small, *larger)] == [*range(400), *range(40)]
                assert all(bool((tensor == tensor[0]).all()) for tensor in (*small, *larger))
                assert in_ring(larger[-1]) or keep
                kept += [(batch, small, larger)] if keep else []
            assert [check(batch) for batch, _, _ in kept] == (everything(20, 1) if keep else [])
            assert all(bool((larger[k] == k).all()) for _, _, larger in kept for k in range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def unpicklable(batch: Any) -> Any:
    return (batch, lambda: None) if int(batch["rest"][0].tag[1]) == 3 else batch


def test_a_batch_that_cannot_be_sent_is_an_error_and_not_a_wait_for_ever() -> None:
    iterator = iter(load(Each(Batches(), unpicklable), 1, timeout=60))
    assert [check(next(iterator)) for _ in range(3)] == everything(3, 1)
    with pytest.raises(TypeError, match="this batch cannot be sent to the training process"):
        next(iterator)


def without_memfd(worker: int) -> None:
    del os.memfd_create


def test_a_platform_without_memfd_gets_the_ordinary_transport() -> None:
    batches = list(load(Batches(), worker_init_fn=without_memfd))
    assert [check(batch) for batch in batches] == everything(12, 2)
    assert all(batch["image"].is_shared() for batch in batches)
    script = "import os, mmap, torch; del os.memfd_create, os.MFD_CLOEXEC, os.register_at_fork, mmap.MADV_REMOVE"
    script += "; import shardcache.read.transport"
    subprocess.run([sys.executable, "-c", script], check=True)


def limit_address_space(worker: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), resource.RLIM_INFINITY))


def test_a_ring_that_cannot_grow_sends_large_batches_through_the_pipe() -> None:
    """Sixteen times the largest batch is more address space than there is."""
    for number, tensor in enumerate(load(Growing(), 1, worker_init_fn=limit_address_space)):
        assert torch.equal(tensor, pattern(0, number, Growing.sizes[number]))
    assert number == len(Growing.sizes) - 1
