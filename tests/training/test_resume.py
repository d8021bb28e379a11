"""Whatever happens to a training, it goes on with the batches that were left."""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from shardcache import Cache, CachedDataset, Loader, UsageError
from tests.read.sources import numbers
from tests.training.conftest import CacheOf
from tests.training.processes import CONTEXT
from tests.training.trainer import GLOBAL_BATCH, loaders, train

SMALL_BUFFER = {"shuffle_buffer": 100}  # of 1,000 samples: rows are delayed, not permuted as a whole


@pytest.fixture(scope="module")
def cache(numbers_of: CacheOf) -> Cache:
    return numbers_of(1000)


def undisturbed(cache: Cache, epochs: int, options: dict[str, Any]) -> list[Any]:
    (loader,) = loaders(cache, 1, 0, **options)
    seen = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        seen += [[epoch, batch] for batch in numbers(loader)]
    return seen


class TestKilled:
    """A training process dies of SIGKILL, and another one goes on from its last checkpoint."""

    @pytest.mark.parametrize("options", [SMALL_BUFFER, {"drop_last": True}], ids=["buffer", "permuted"])
    def test_a_training_sees_the_batches_of_an_undisturbed_one(
        self, cache: Cache, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        checkpoint, epochs = tmp_path / "checkpoint.json", 3
        expected = undisturbed(cache, epochs, options)
        random_steps = random.Random(f"{options}")
        kills = sorted(random_steps.sample(range(1, len(expected) - 6), 4))
        jobs = [(1, 2), (2, 2), (4, 0), (1, 3), (2, 1)]  # (world size, workers)
        for kill, (world_size, workers) in zip([*kills, None], jobs, strict=True):
            self.run(cache, checkpoint, epochs, world_size, workers, options, kill)
        saved = json.loads(checkpoint.read_text())
        assert saved["seen"] == expected

    def run(
        self,
        cache: Cache,
        checkpoint: Path,
        epochs: int,
        world_size: int,
        workers: int,
        options: dict[str, Any],
        kill: int | None,
    ) -> None:
        """One life of the training: up to the step at which it is killed, or to its end."""
        progress = CONTEXT.Value("q", 0)
        process = CONTEXT.Process(
            target=train,
            args=(str(cache.path), checkpoint, epochs, world_size, workers, options, progress, kill is not None),
        )
        process.start()
        assert process.pid is not None
        deadline = time.monotonic() + 60
        while process.is_alive() and (kill is None or progress.value < kill):
            assert time.monotonic() < deadline, "the training hangs"
            time.sleep(0.001)
        if kill is not None:
            assert process.is_alive(), f"the training ended by itself with {process.exitcode}"
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == (0 if kill is None else -signal.SIGKILL)


def loader_of(cache: Cache, workers: int = 0, persistent: bool = False, **options: Any) -> Loader:
    options = {"shuffle": True, "seed": 5, **SMALL_BUFFER, **options}
    if "global_batch_size" not in options:
        options.setdefault("batch_size", 32)
    return CachedDataset(cache, **options).loader(num_workers=workers, persistent_workers=persistent)


def epoch_of(loader: Any, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return numbers(loader)


class TestLoader:
    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, False), (2, True), (3, True)])
    def test_the_state_counts_what_was_delivered_whatever_workers_have_read_ahead(
        self, cache: Cache, workers: int, persistent: bool
    ) -> None:
        loader = loader_of(cache, workers, persistent)
        whole = epoch_of(loader, 3)
        loader.set_epoch(4)
        fourth, states = [], [loader.state_dict()]
        for index, _ in loader:
            fourth.append(index.tolist())
            states.append(json.loads(json.dumps(loader.state_dict())))
        assert [(state["epoch"], state["step"]) for state in states] == [(4, step) for step in range(33)]
        assert len(loader) == len(whole) == len(fourth) == 32
        for step in (0, 1, 7, 30, 31, 32):
            loader.load_state_dict(states[step])
            assert loader.state_dict() == states[step]
            assert epoch_of(loader, 4) == fourth[step:]
            assert loader.state_dict() == states[32]
        assert epoch_of(loader, 3) == whole
        assert len(loader) == 32

    def test_a_state_goes_to_any_number_of_workers(self, cache: Cache) -> None:
        whole = epoch_of(loader_of(cache), 2)
        for before, after in ((0, 4), (4, 0), (2, 3), (3, 2)):
            loader = loader_of(cache, before)
            loader.set_epoch(2)
            batches = iter(loader)
            assert numbers(itertools.islice(batches, 11)) == whole[:11]
            state = loader.state_dict()
            del batches
            loader = loader_of(cache, after)
            loader.load_state_dict(state)
            assert numbers(loader) == whole[11:]

    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
    def test_epochs_after_the_one_that_was_resumed_are_whole(
        self, cache: Cache, workers: int, persistent: bool
    ) -> None:
        expected = [epoch_of(loader_of(cache), epoch) for epoch in range(3)]
        loader = loader_of(cache, workers, persistent)
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "step": 20})
        assert epoch_of(loader, 0) == expected[0][20:]
        assert epoch_of(loader, 1) == expected[1]
        assert epoch_of(loader, 2) == expected[2]

    def test_a_loop_that_was_left_early_and_begun_again_starts_at_the_beginning(self, cache: Cache) -> None:
        loader = loader_of(cache, 2, order="stored", shuffle=False)
        whole = numbers(loader)
        for _ in loader:
            break
        assert loader.state_dict()["step"] == 1
        assert numbers(loader) == whole

    def test_two_iterations_at_once_do_not_disturb_each_other(self, cache: Cache) -> None:
        loader = loader_of(cache, 2)
        expected = [epoch_of(loader, epoch) for epoch in range(2)]
        loader.set_epoch(0)
        first = iter(loader)
        loader.set_epoch(1)
        second = iter(loader)
        pairs = list(zip(first, second, strict=True))
        assert [numbers(one) for one in zip(*pairs, strict=True)] == expected

    def test_an_iteration_of_two_epochs_ends_with_the_second_also_when_it_is_resumed(self, cache: Cache) -> None:
        expected = [batch for epoch in (4, 5) for batch in epoch_of(loader_of(cache), epoch)]
        loader = loader_of(cache, 2, epochs=2)
        loader.set_epoch(4)
        assert len(loader) == 64
        states = [loader.state_dict()]
        batches = []
        for index, _ in loader:
            batches.append(index.tolist())
            states.append(loader.state_dict())
        assert batches == expected
        for step in (5, 32, 50, 64):
            again = loader_of(cache, 3, epochs=2)
            again.load_state_dict(states[step])
            assert numbers(again) == expected[step:]


class TestAnotherState:
    """A state that does not fit is refused, and the message says what to write."""

    def refused(self, state: dict[str, Any], loader: Loader) -> str:
        before = loader.state_dict()
        with pytest.raises(UsageError) as caught:
            loader.load_state_dict(state)
        assert loader.state_dict() == before
        return str(caught.value)

    def test_of_another_global_batch(self, cache: Cache) -> None:
        state = loaders(cache, 2, 0)[0].state_dict()
        said = self.refused(state, loaders(cache, 1, 0, global_batch_size=16)[0])
        assert "saved with a global batch of 32; now it is 16 (1 x 16): pass batch_size=32" in said
        said = self.refused(state, loaders(cache, 2, 0, global_batch_size=16)[0])
        assert "now it is 16 (2 x 8): pass batch_size=16" in said
        said = self.refused(state, loader_of(cache, rank=0, world_size=3, global_batch_size=33, canonical_ranks=3))
        assert "use a world size that divides it" in said

    def test_of_another_seed_order_remainder_or_number_of_ranks(self, cache: Cache) -> None:
        state = loader_of(cache).state_dict()
        assert "pass seed=5" in self.refused(state, loader_of(cache, seed=6))
        assert "pass order='shuffled'" in self.refused(state, loader_of(cache, shuffle=False, order="stored"))
        assert "pass remainder='keep'" in self.refused(state, loader_of(cache, remainder="drop"))
        assert "pass canonical_ranks=1" in self.refused(state, loader_of(cache, canonical_ranks=2, remainder="keep"))

    def test_of_another_shuffle_buffer_where_it_makes_a_difference(self, cache: Cache) -> None:
        state = loader_of(cache).state_dict()
        assert "the same shuffle_buffer" in self.refused(state, loader_of(cache, shuffle_buffer=600))
        assert "the same shuffle_buffer" in self.refused(state, loader_of(cache, shuffle_buffer=None))
        stored = {"shuffle": False, "order": "stored"}
        loader_of(cache, **stored, shuffle_buffer=500).load_state_dict(loader_of(cache, **stored).state_dict())

    def test_of_another_cache_or_view(self, cache: Cache, numbers_of: CacheOf) -> None:
        state = loader_of(cache).state_dict()
        parts = cache.split({"train": 0.9, "val": 0.1})
        for other in (numbers_of(1001), parts["train"]):
            assert "it is of another cache, or of another view of it" in self.refused(state, loader_of(other))
        state = loader_of(parts["train"]).state_dict()
        loader_of(cache.split({"train": 0.9})["train"]).load_state_dict(state)
        assert "another view" in self.refused(state, loader_of(cache.split({"train": 0.9}, seed=1)["train"]))

    @pytest.mark.parametrize("state", [{}, None, {"version": 2}, [1]])
    def test_that_is_none_at_all(self, cache: Cache, state: Any) -> None:
        assert "not a state" in self.refused(state, loader_of(cache))

    @pytest.mark.parametrize(
        "wrong", [{"step": -1}, {"step": 33}, {"step": 1.0}, {"step": None}, {"epoch": -1}, {"epoch": "1"}]
    )
    def test_with_a_position_that_is_nowhere(self, cache: Cache, wrong: dict[str, Any]) -> None:
        loader = loader_of(cache)
        self.refused({**loader.state_dict(), **wrong}, loader)

    @pytest.mark.parametrize("missing", ["epoch", "step", "seed", "digest", "remainder"])
    def test_that_lacks_something(self, cache: Cache, missing: str) -> None:
        loader = loader_of(cache)
        state = loader.state_dict()
        del state[missing]
        self.refused(state, loader)


class TestOrdinaryDataLoader:
    """Its workers count for themselves, so the user counts the steps."""

    def loader(self, ds: CachedDataset, workers: int, persistent: bool) -> DataLoader[Any]:
        return DataLoader(ds, batch_size=None, num_workers=workers, persistent_workers=persistent)

    def dataset(self, cache: Cache, **options: Any) -> CachedDataset:
        return CachedDataset(cache, **{"batch_size": 32, "shuffle": True, "seed": 5, **SMALL_BUFFER, **options})

    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, False), (3, True)])
    def test_resume_begins_at_a_step_and_later_epochs_are_whole(
        self, cache: Cache, workers: int, persistent: bool
    ) -> None:
        expected = [epoch_of(loader_of(cache), epoch) for epoch in range(5)]
        ds = self.dataset(cache)
        loader = self.loader(ds, workers, persistent)

        def epoch_number(epoch: int) -> list[list[int]]:
            ds.set_epoch(epoch)
            return numbers(loader)

        ds.resume(epoch=3, step=13)
        assert numbers(loader) == expected[3][13:]
        assert epoch_number(4) == expected[4]
        ds.resume(epoch=1, step=31)
        assert epoch_number(1) == expected[1][31:]
        assert epoch_number(2) == expected[2]
        ds.resume(epoch=0, step=32)
        assert numbers(loader) == []
        assert epoch_number(1) == expected[1]
        assert len(loader) == 32

    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
    def test_an_evaluation_whose_epoch_is_never_set_is_whole_after_it_was_resumed(
        self, cache: Cache, workers: int, persistent: bool
    ) -> None:
        ds = self.dataset(cache, shuffle=False, order="stored")
        whole = numbers(self.loader(ds, 0, False))
        loader = self.loader(ds, workers, persistent)
        ds.resume(epoch=0, step=9)
        assert numbers(loader) == whole[9:]
        assert numbers(loader) == whole
        ds.resume(epoch=0, step=30)
        assert numbers(loader) == whole[30:]
        assert numbers(loader) == whole

    def test_the_dataset_says_that_it_has_no_state(self, cache: Cache) -> None:
        with pytest.raises(UsageError, match=r"ds.loader\(...\) and loader.state_dict\(\), or .* ds.resume"):
            self.dataset(cache).state_dict()

    def test_a_step_must_be_within_an_epoch(self, cache: Cache) -> None:
        for step in (-1, 33, 1.5, True):
            with pytest.raises(UsageError, match=r"step must be 0..32"):
                self.dataset(cache).resume(epoch=0, step=step)

    def test_a_loader_takes_the_place_at_which_its_dataset_is(self, cache: Cache) -> None:
        ds = self.dataset(cache)
        ds.resume(epoch=2, step=30)
        loader = ds.loader()
        assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (2, 30)
        assert numbers(loader) == epoch_of(loader_of(cache), 2)[30:]

    def test_an_ordinary_loader_over_the_dataset_of_one_of_ours_goes_by_its_own_epochs(self, cache: Cache) -> None:
        ours = loader_of(cache)
        assert epoch_of(ours, 0) != epoch_of(ours, 1)
        loader = self.loader(ours.dataset, 2, False)
        for epoch in (3, 2):
            ours.dataset.set_epoch(epoch)
            assert numbers(loader) == epoch_of(loader_of(cache), epoch)


class TestEndless:
    """``epochs=None``: one iteration goes through one epoch after the other."""

    @pytest.mark.parametrize("workers", [0, 1, 2, 3])
    def test_it_is_epoch_by_epoch(self, cache: Cache, workers: int) -> None:
        expected = [batch for epoch in range(2, 5) for batch in epoch_of(loader_of(cache), epoch)]
        loader = loader_of(cache, workers, epochs=None)
        loader.set_epoch(2)
        assert numbers(itertools.islice(loader, len(expected))) == expected

    def test_it_has_no_length(self, cache: Cache) -> None:
        loader = loader_of(cache, epochs=None)
        for endless in (loader, loader.dataset):
            with pytest.raises(TypeError, match="never ends"):
                len(endless)

    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
    def test_its_state_goes_on_across_the_ends_of_epochs(self, cache: Cache, workers: int, persistent: bool) -> None:
        expected = [batch for epoch in range(4) for batch in epoch_of(loader_of(cache), epoch)]
        loader = loader_of(cache, workers, persistent, epochs=None)
        states = []
        for batch in itertools.islice(loader, 100):
            assert batch[0].tolist() == expected[len(states)]
            states.append(loader.state_dict())
        assert [(state["epoch"], state["step"]) for state in states] == [divmod(k + 1, 32) for k in range(100)]
        for step in (10, 31, 32, 33, 70):
            again = loader_of(cache, 2 - workers, epochs=None)
            again.load_state_dict(states[step - 1])
            assert numbers(itertools.islice(again, 100 - step)) == expected[step:100]

    def test_samples_too(self, cache: Cache) -> None:
        def loader() -> Loader:
            ds = CachedDataset(cache, shuffle=True, epochs=None, **SMALL_BUFFER)
            return ds.loader(num_workers=2)

        first = loader()
        samples = [index for index, _ in itertools.islice(first, 1500)]
        state = first.state_dict()
        assert (state["epoch"], state["step"]) == (1, 500)
        assert sorted(samples[:1000]) == list(range(1000))
        again = loader()
        again.load_state_dict(state)
        rest = [index for index, _ in itertools.islice(again, 500)]
        assert sorted(samples[1000:] + rest) == list(range(1000))


def test_the_global_batch_of_these_tests_is_what_they_say(cache: Cache) -> None:
    assert {len(batch) for batch in numbers(loaders(cache, 1, 0)[0])} == {GLOBAL_BATCH}
