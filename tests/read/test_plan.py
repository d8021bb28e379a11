"""The plan: which rows come when, whoever asks, however the data lies."""

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardcache.format.permutation import Permutation
from shardcache.read import geometry as geometries
from shardcache.read import strand as strands
from shardcache.read.geometry import Geometry, Selection
from shardcache.read.plan import LANES, Order, Plan, PlanReader
from shardcache.read.settings import slots

STABLE = [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]  # the numbers of workers that divide 48


@st.composite
def orders(draw: Any) -> tuple[Geometry, Order]:
    """Any geometry of some thousand rows at most, and any order of it."""
    rows = draw(st.one_of(st.integers(1, 60), st.integers(1, 4000)))
    per_block = draw(st.one_of(st.just(1), st.integers(1, 64), st.integers(1, rows)))
    geometry = Geometry(rows, per_block, draw(st.integers(1, 40)))
    if draw(st.sampled_from([False, False, True])):
        chosen = np.random.default_rng(draw(st.integers(0, 2**32))).random(rows) < draw(st.floats(0, 1))
        geometry = Selection(np.flatnonzero(chosen) if chosen.any() else np.array([rows - 1]), per_block)
    strands = draw(st.sampled_from([1, 1, 2, 3, 4, 6]))
    order = Order(
        draw(st.sampled_from(["lanes", "lanes", "lanes", "full", "source", "stored"])),
        draw(st.integers(-(2**63), 2**63)),
        draw(st.integers(0, 1000)),
        draw(st.one_of(st.integers(1, 40), st.integers(1, 2 * rows))),
        strands,
        draw(st.one_of(st.just(0), st.integers(0, 500))),
        draw(st.sampled_from(["drop", "pad", "keep"])),
    )
    return geometry, order


@pytest.fixture(params=[2048, 4], ids=["single blocks", "longer extents"])
def extents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extents of more than one block need thousands of blocks, unless there are few extents."""
    monkeypatch.setattr(geometries, "_EXTENTS", request.param)


def stored(geometry: Geometry) -> set[int]:
    """The rows on disk that a geometry has."""
    block, offset = geometry.stored(*geometry.locate(np.arange(geometry.rows)))
    return set((block * geometry.rows_per_block + offset).tolist())


def delivered(plan: Plan, reader: PlanReader, step: int) -> list[tuple[int, bool]]:
    """(row, valid) of a step."""
    rows = reader.rows([step])
    return list(
        zip((rows.block * plan.geometry.rows_per_block + rows.offset).tolist(), rows.valid.tolist(), strict=True)
    )


def epoch(plan: Plan, start: int = 0) -> list[list[tuple[int, bool]]]:
    """All global batches from a step on."""
    reader = plan.reader(0, 1)
    return [delivered(plan, reader, step) for step in range(start, plan.steps)]


def from_workers(plan: Plan, workers: int, start: int = 0) -> list[list[tuple[int, bool]]]:
    """The batches that a DataLoader gets which asks its workers in turn."""
    reader = [plan.reader(0, 1) for _ in range(workers)]
    steps = [plan.worker_steps(worker, workers, start) for worker in range(workers)]
    batches, asked = [], list(range(workers))
    while asked:
        for worker in list(asked):
            step = next(steps[worker], None)
            if step is None:
                asked.remove(worker)
            else:
                batches.append(delivered(plan, reader[worker], step))
    return batches


several = settings(max_examples=40)


@pytest.mark.usefixtures("extents")
class TestEpochs:
    @given(orders())
    @several
    @example((Geometry(5, 64, 3), Order("lanes", 0, 0, 7, 3, 9, "pad")))
    @example((Geometry(3, 1, 1), Order("lanes", 0, 0, 1, 4, 0, "keep")))
    def test_every_row_comes_once_and_padding_is_marked(self, drawn: tuple[Geometry, Order]) -> None:
        geometry, order = drawn
        plan = Plan(geometry, order)
        batches = epoch(plan)
        size = order.share * order.strands
        whole, rest = divmod(geometry.rows, size)
        sizes = [size] * whole + {"drop": [], "pad": [size] if rest else [], "keep": [rest] if rest else []}[
            order.remainder
        ]
        assert [len(batch) for batch in batches] == sizes
        rows = Counter(row for batch in batches for row, valid in batch if valid)
        assert set(rows.values()) <= {1}
        assert {row for batch in batches for row, _ in batch} <= stored(geometry)
        assert len(rows) == (whole * size if order.remainder == "drop" else geometry.rows)
        filling = [row for batch in batches for row, valid in batch if not valid]
        assert len(filling) == (-geometry.rows % size if order.remainder == "pad" else 0)
        if geometry.rows >= size:
            assert max(Counter(filling).values(), default=1) == 1

    @given(orders(), st.sampled_from(STABLE))
    @several
    def test_any_number_of_workers_that_divides_48_gives_the_same_batches(
        self, drawn: tuple[Geometry, Order], workers: int
    ) -> None:
        plan = Plan(*drawn)
        assert from_workers(plan, workers) == epoch(plan)

    @given(orders(), st.integers(1, 70))
    @several
    def test_any_other_number_of_workers_gives_the_same_batches_in_another_order(
        self, drawn: tuple[Geometry, Order], workers: int
    ) -> None:
        plan = Plan(*drawn)
        assert sorted(from_workers(plan, workers)) == sorted(epoch(plan))

    @given(orders())
    @several
    def test_a_world_size_that_divides_the_strands_gives_the_same_global_batches(
        self, drawn: tuple[Geometry, Order]
    ) -> None:
        plan = Plan(*drawn)
        whole = epoch(plan)
        for world in (2, 3, 4, 6):
            if plan.order.strands % world == 0:
                readers = [plan.reader(rank, world) for rank in range(world)]
                for step, batch in enumerate(whole):
                    assert [pair for reader in readers for pair in delivered(plan, reader, step)] == batch

    @given(orders(), st.integers(1, 200))
    @several
    def test_many_steps_asked_for_at_once_are_the_same_rows_as_one_by_one(
        self, drawn: tuple[Geometry, Order], at_once: int
    ) -> None:
        plan = Plan(*drawn)
        for rank in range(plan.order.strands):
            many, single = plan.reader(rank, plan.order.strands), plan.reader(rank, plan.order.strands)
            for first in range(0, plan.steps, at_once):
                steps = list(range(first, min(first + at_once, plan.steps)))
                rows, ends = many.rows(steps), many.ends(steps)
                assert ends[-1] == len(rows.block)
                for step, start, end in zip(steps, ends[:-1], ends[1:], strict=True):
                    of_step = zip(rows.part(slice(start, end)), single.rows([step]), strict=True)
                    assert all(np.array_equal(part, alone) for part, alone in of_step)

    @given(orders())
    @several
    def test_short_permutations_of_blocks_are_the_same_written_down(self, drawn: tuple[Geometry, Order]) -> None:
        plan = Plan(*drawn)
        expected = epoch(plan)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(strands, "_TABLED", -1)
            assert epoch(Plan(*drawn)) == expected

    @given(orders(), st.floats(0, 1), st.sampled_from(STABLE))
    @several
    def test_resuming_at_any_step_gives_the_batches_that_were_left(
        self, drawn: tuple[Geometry, Order], share: float, workers: int
    ) -> None:
        plan = Plan(*drawn)
        start = round(share * plan.steps)
        assert from_workers(Plan(*drawn), workers, start) == epoch(plan)[start:]

    @pytest.mark.parametrize("rows", [480, 48 * 10_000])  # a lane of one window, and of several
    def test_an_epoch_of_blocks_of_one_row_can_be_entered_at_any_step(self, rows: int) -> None:
        plan = Plan(Geometry(rows, 1, 64), Order("lanes", 0, 0, 1))
        steps = list(range(48 * 4, 48 * 6))
        whole, entered = plan.reader(0, 1), plan.reader(0, 1)
        expected = [delivered(plan, whole, step) for step in range(48 * 6)][48 * 4 :]
        assert [delivered(plan, entered, step) for step in steps] == expected

    @given(orders(), st.sampled_from([*STABLE, 5, 7]), st.floats(0, 0.9), st.sampled_from([1, 7]))
    @settings(several, max_examples=100)
    def test_the_last_row_of_each_visit_is_marked_and_a_worker_never_holds_more_blocks_than_it_has_slots(
        self, drawn: tuple[Geometry, Order], workers: int, share: float, at_once: int
    ) -> None:
        geometry, order = drawn
        order = replace(order, kind="lanes", span=order.span if geometry.rows_per_block > 1 else 0)
        plan = Plan(geometry, order)
        for world in {1, order.strands}:
            owned = order.strands // world
            room = slots(plan, -(-plan.lanes // workers), owned, order.share * owned * at_once)
            for worker in {0, workers - 1}:
                reader = plan.reader(world - 1, world)
                steps = list(plan.worker_steps(worker, workers, round(share * plan.steps)))
                live: set[int] = set()
                gone: set[int] = set()
                for first in range(0, len(steps), at_once):
                    rows = reader.rows(steps[first : first + at_once])
                    visits, last = rows.visit.tolist(), rows.visit[rows.last].tolist()
                    assert gone.isdisjoint(visits)
                    live.update(visits)
                    assert len(live) <= room or not geometry.is_even  # a selection's blocks are of any size
                    for visit in last:
                        assert rows.last[rows.visit == visit].tolist()[-1]
                        live.remove(visit)  # once
                        gone.add(visit)
                assert not live


class TestOrders:
    def test_a_selection_gives_its_rows_in_stored_order(self) -> None:
        chosen = np.array([3, 4, 70, 71, 72, 500])
        plan = Plan(Selection(chosen, 7), Order("stored", 1, 2, 4))
        assert [[row for row, _ in batch] for batch in epoch(plan)] == [[3, 4, 70, 71], [72, 500]]

    def test_source_order_follows_the_source_through_a_shuffled_layout(self) -> None:
        layout = Permutation(1000, 5)
        plan = Plan(Geometry(1000, 7, 3), Order("source", 1, 2, 32), layout.inverse)
        rows = np.array([row for batch in epoch(plan) for row, _ in batch])
        assert layout.forward(rows).tolist() == list(range(1000))

    def test_stored_order_reads_the_rows_as_they_lie(self) -> None:
        plan = Plan(Geometry(1000, 7, 3), Order("stored", 1, 2, 32), Permutation(1000, 5).inverse)
        assert [row for batch in epoch(plan) for row, _ in batch] == list(range(1000))

    @pytest.mark.parametrize("kind", ["full", "lanes"])
    def test_seeds_and_epochs_give_different_orders(self, kind: str) -> None:
        def rows(seed: int, number: int) -> tuple[Any, ...]:
            plan = Plan(Geometry(2000, 10, 5), Order(kind, seed, number, 50, 1, 100))
            return tuple(row for batch in epoch(plan) for row, _ in batch)

        orders = {rows(seed, number) for seed in (0, 1, -1, 2**40) for number in (0, 1, 2)}
        assert len(orders) == 12

    @pytest.mark.parametrize("span", [0, 40, 400])
    def test_no_row_of_a_strand_moves_further_than_the_span_and_two_blocks(self, span: int) -> None:
        plan = Plan(Geometry(48 * 500, 10, 7), Order("lanes", 3, 0, 20, 1, span))
        for lane in (0, 17, 47):
            strand = plan.strand(lane, 0, 0)
            rows = strand.take(500)
            arrival = (rows.visit & (1 << 40) - 1) * 10
            moved = np.arange(500) - arrival
            assert abs(moved).max() <= span + 2 * 10
            assert moved.max() > span // 2

    @pytest.mark.parametrize("span", [100, 400])
    def test_rows_of_a_block_are_spread_over_many_batches(self, span: int) -> None:
        plan = Plan(Geometry(96_000, 50, 10), Order("lanes", 3, 0, 50, 1, span))
        spread: dict[int, set[int]] = {}
        for step, batch in enumerate(epoch(plan)):
            for row, _ in batch:
                spread.setdefault(row // 50, set()).add(step)
        assert np.mean([len(steps) for steps in spread.values()]) > 0.9 * (span + 50) / 50


FROZEN = [
    (
        (Geometry(1000, 16, 4), Order("lanes", 0, 0, 10, 1, 50), None),
        [220, 216, 218, 221, 210, 208],
        "6f28ce17895c4db4",
    ),
    (
        (Geometry(100_003, 37, 11), Order("lanes", -7, 3, 25, 4, 100, "pad"), None),
        [39754, 39757, 39740, 39739, 39745, 39747],
        "f799e5742b2c4a7b",
    ),
    (
        (Geometry(9999, 1, 64), Order("lanes", 2**62, 1, 32, 2, 0, "drop"), None),
        [6801, 5685, 6638, 95, 6621, 4721],
        "b00b11316a42fccf",
    ),
    (
        (Geometry(5000, 64, 8), Order("full", 42, 9, 64, 1, 0, "keep"), None),
        [685, 284, 462, 4751, 3526, 1974],
        "c129739f7978376b",
    ),
    (
        (Geometry(5000, 64, 8), Order("source", 42, 9, 64, 1, 0, "keep"), Permutation(5000, 1).inverse),
        [3993, 2524, 2739, 208, 2985, 4636],
        "6ccfbca24ddd8409",
    ),
]


@pytest.mark.parametrize(("arguments", "first", "digest"), FROZEN, ids=lambda value: getattr(value, "kind", None))
def test_the_order_of_an_epoch_is_frozen(arguments: Any, first: list[int], digest: str) -> None:
    rows = np.array([row for batch in epoch(Plan(*arguments)) for row, _ in batch], "<i8")
    assert rows[:6].tolist() == first
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == digest


class TestSize:
    """10**9 rows: what a plan costs follows from what is asked of it."""

    GEOMETRY = Geometry(10**9, 1000, 500)

    @pytest.mark.parametrize("start", [0, 3_500_000])
    def test_the_first_batches_of_a_billion_rows_take_little_memory(self, start: int) -> None:
        tracemalloc.start()
        try:
            plan = Plan(self.GEOMETRY, Order("lanes", 0, 0, 256, 1, 2000))
            reader = plan.reader(0, 1)
            for step in list(range(start, start + 100)):
                assert len(reader.rows([step]).block) == 256
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 << 20

    def test_a_full_permutation_of_a_billion_rows_has_no_table(self) -> None:
        tracemalloc.start()
        try:
            plan = Plan(self.GEOMETRY, Order("full", 0, 0, 256))
            rows = plan.reader(0, 1).rows([plan.steps - 2])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(rows.block) == 256
        assert peak < 1 << 20

    def test_a_strand_that_is_entered_late_gives_what_it_gives_when_read_through(self) -> None:
        geometry, order = Geometry(3_000_000, 500, 20), Order("lanes", 4, 4, 128, 1, 3000)
        whole, late = Plan(geometry, order).strand(7, 0, 0), Plan(geometry, order).strand(7, 0, 60_000)
        expected = [column[60_000:61_000] for column in whole.take(61_000)]
        for column, rows in zip(late.take(1000), expected, strict=True):
            assert np.array_equal(column, rows)


class Steps(IterableDataset[Any]):
    """Yields the steps that a plan gives to this worker, for as many epochs as asked for in one iteration."""

    def __init__(self, plan: Plan, start: int, epochs: int) -> None:
        self.plan, self.start, self.epochs = plan, start, epochs

    def __iter__(self) -> Iterator[tuple[int, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        start, yielded = self.start, 0
        for number in range(self.epochs):
            for step in self.plan.worker_steps(worker, workers, start, yielded):
                yield number, step
            yielded += self.plan.steps - start
            start = 0


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4, 6, 8])
def test_a_real_dataloader_asks_in_the_order_that_the_plan_expects(workers: int) -> None:
    assert LANES == 48
    cases = [
        ("lanes", 2, 0, 1),
        ("lanes", 49, 48, 3),
        ("lanes", 131, 50, 1),
        ("lanes", 200, 0, 2),
        ("source", 77, 5, 2),
    ]
    for kind, rows, start, prefetch in cases:
        plan = Plan(Geometry(rows, 4, 3), Order(kind, 0, 0, 1))
        options = {"prefetch_factor": prefetch} if workers else {}
        loader = DataLoader(Steps(plan, start, 1), batch_size=None, num_workers=workers, **options)
        assert [tuple(pair) for pair in loader] == [(0, step) for step in range(start, rows)]


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_several_epochs_in_one_iteration_keep_the_order_too(workers: int) -> None:
    plan = Plan(Geometry(101, 4, 3), Order("lanes", 0, 0, 1))
    loader = DataLoader(Steps(plan, 31, 3), batch_size=None, num_workers=workers)
    expected = [(0, step) for step in range(31, 101)] + [(n, step) for n in (1, 2) for step in range(101)]
    assert [tuple(pair) for pair in loader] == expected
