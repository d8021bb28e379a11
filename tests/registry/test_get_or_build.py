"""One cache for many experiments: reuse, refusal, races, retirement."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import shardcache
from shardcache import (
    CacheMissError,
    RandomSourceError,
    ShardCacheWarning,
    StaleCacheError,
    StorageError,
    UsageError,
    get_or_build,
)
from shardcache.registry import store


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDCACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path / "home"


class Squares:
    """Counts its reads in a file, so that a build can be told from a reuse."""

    def __init__(self, size: int = 60, log: str = "", slow: float = 0.0) -> None:
        self.size, self.log, self.slow = size, log, slow

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, int]:
        time.sleep(self.slow)
        return index, index * index


class Lines:
    """Reads a file that no argument names."""

    def __init__(self) -> None:
        self.path = os.environ["LINES"]
        self.lines = Path(self.path).read_text().splitlines()

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> str:
        return self.lines[index]


class Random:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> float:
        return random.Random(time.perf_counter_ns()).random()


class Hidden:
    """Its values come from where nobody looks."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return index + int(os.environ.get("HIDDEN".upper(), "0"))


def get(factory: Any = Squares, **options: Any) -> shardcache.Cache:
    return get_or_build(factory, **{"name": "train", "progress": False, **options})


def built(cache: shardcache.Cache) -> float:
    """When a cache was built: the same for every reuse."""
    return os.stat(cache.path / "manifest.json").st_mtime_ns


class TestReuse:
    def test_the_second_call_opens_what_the_first_one_built(self, root: Path) -> None:
        first, second = get(kwargs={"size": 50}), get(kwargs={"size": 50})
        assert second[7] == (7, 49)
        assert (first.path, built(first)) == (second.path, built(second))
        assert first.path.parent == root / "train"

    def test_other_arguments_have_a_cache_of_their_own(self) -> None:
        one, other = get(kwargs={"size": 50}), get(kwargs={"size": 51})
        assert (len(one), len(other)) == (50, 51)
        assert one.path != other.path

    def test_a_file_that_an_attribute_names_is_watched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "lines.txt"
        monkeypatch.setenv("LINES", str(file))
        file.write_text("a\nb\n")
        assert list(get(Lines)) == ["a", "b"]
        file.write_text("a\nb\nc\n")
        assert "1 file changed" in str(shardcache.explain("train", Lines))
        assert list(get(Lines)) == ["a", "b", "c"]

    def test_a_dependency_that_is_declared_is_watched(self, tmp_path: Path) -> None:
        file = tmp_path / "labels.txt"
        file.write_text("1")
        first = get(deps=[file])
        assert get(deps=[file]).path == first.path
        file.write_text("12")
        assert get(deps=[file]).path != first.path

    @pytest.mark.parametrize("deps", ["labels.txt", b"x", 5])
    def test_dependencies_that_are_no_list_are_refused(self, deps: Any) -> None:
        with pytest.raises(UsageError, match="deps must be a list of paths"):
            get(deps=deps)
        with pytest.raises(UsageError, match="deps must be a list of paths"):
            shardcache.explain("train", Squares, deps=deps)

    @pytest.mark.parametrize("options", [{"kwargs": 5}, {"cache_dir": 5}, {"cache_dir": "a\0"}])
    def test_arguments_and_folders_that_can_be_none_are_refused(self, options: Any) -> None:
        with pytest.raises(UsageError, match=r"must be a dict of arguments|must name a directory"):
            get(**options)

    def test_a_folder_may_be_named_by_the_home_of_its_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("SHARDCACHE_HOME", "~/shared")
        assert get().path.is_relative_to(tmp_path / "shared")

    def test_rebuild_makes_a_new_one_and_readers_keep_the_old_one(self) -> None:
        old = get()
        new = get(rebuild=True)
        assert built(new) != 0
        assert new.path == old.path
        assert [old[index] for index in range(60)] == [new[index] for index in range(60)]

    def test_a_build_that_was_killed_is_continued(self, root: Path) -> None:
        options = {"kwargs": {"size": 3000, "slow": 0.0005}, "block_bytes": 1000}
        child = multiprocessing.get_context("fork").Process(target=get, kwargs=options)
        child.start()
        deadline = time.monotonic() + 60
        while not list(root.glob("train/*.partial/shard-*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kept = list(root.glob("train/*.partial/shard-*.lmdb"))
        assert kept
        assert get(**options, spot_check=0)[2999] == (2999, 2999**2)

    def test_a_lock_that_somebody_left_is_no_obstacle(self, root: Path) -> None:
        path = get().path
        shutil.rmtree(path)
        path.with_name(f"{path.name}.lock").write_text("left behind")
        assert len(get()) == 60


class TestAMiss:
    def test_is_an_error_that_says_what_differs_and_how_to_build(self) -> None:
        get(kwargs={"size": 50})
        with pytest.raises(CacheMissError, match=r"argument size: 50 -> 51.*shardcache build .* --arg size=51"):
            get(kwargs={"size": 51}, on_miss="error")

    def test_says_where_there_is_none_of_the_name(self, root: Path) -> None:
        with pytest.raises(CacheMissError, match=f"no cache of this name in {root}"):
            get(on_miss="error")
        assert get(on_miss="build").path == get(on_miss="error").path


class TestTheSpotCheck:
    def test_is_made_in_a_worker_of_a_pool_too(self) -> None:
        """Such a worker may have no children of its own, says multiprocessing."""
        get()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(_checked) == 60

    def test_a_difference_stops_with_sample_column_and_both_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        get(Hidden)
        get(Hidden)
        monkeypatch.setenv("HIDDEN", "5")
        with pytest.raises(StaleCacheError, match=r"sample \d+, column 'sample': the dataset gives \d+ now, the cache"):
            get(Hidden)
        assert len(get(Hidden, spot_check=0)) == 40
        assert get(Hidden, on_stale="rebuild")[3] == 8

    def test_a_random_dataset_is_called_that(self) -> None:
        cache = get(Random, allow_random=True)
        with pytest.raises(StaleCacheError, match="the dataset is random"):
            get(Random)
        assert built(get(Random, allow_random=True)) == built(cache)

    def test_a_random_dataset_is_not_built_unasked(self) -> None:
        with pytest.raises(RandomSourceError):
            get(Random)

    def test_another_length_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Squares, "__len__", lambda self: self.size)
        get(version="1")
        monkeypatch.setattr(Squares, "__len__", lambda self: 61)
        with pytest.raises(StaleCacheError, match="has 61 samples now, the cache has 60"):
            get(version="1")

    def test_a_source_that_is_gone_is_a_note(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "lines.txt"
        monkeypatch.setenv("LINES", str(file))
        file.write_text("a\nb\n")
        get(Lines)
        file.unlink()
        with pytest.warns(ShardCacheWarning, match="spot check was skipped: .*FileNotFoundError"):
            assert list(get(Lines)) == ["a", "b"]

    def test_is_made_once_a_node_and_leaves_no_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        get(Hidden)
        monkeypatch.setenv("HIDDEN", "5")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert len(get(Hidden)) == 40
        assert multiprocessing.active_children() == []

    def test_nan_equals_itself_and_records_are_compared(self) -> None:
        from tests.registry.samples import Points

        for _ in range(3):
            get(Points, spot_check=20)


class TestWhereCachesLie:
    def test_the_folder_is_for_its_owner_alone(self, root: Path) -> None:
        get()
        assert root.stat().st_mode & 0o777 == 0o700

    def test_a_folder_that_others_may_write_to_is_refused_unless_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        with pytest.raises(UsageError, match="others may write there"):
            get(cache_dir=tmp_path / "open")
        assert len(get(cache_dir=tmp_path / "open", allow_shared=True)) == 60

    def test_without_anything_it_is_the_platforms_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("SHARDCACHE_HOME")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert get().path.parents[1] == tmp_path / "xdg" / "shardcache"

    @pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 101, "a b"])
    def test_a_name_that_is_none_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="name must be letters"):
            get(name=name)

    @pytest.mark.parametrize(
        "options",
        [{"on_miss": "x"}, {"on_stale": "x"}, {"spot_check": -1}, {"if_exists": "open"}, {"data_check": "x"}],
    )
    def test_options_that_make_no_sense_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            get(**options, deps=["/usr"] if "data_check" in options else ())

    def test_a_folder_that_cannot_be_made_is_a_storage_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StorageError, match="file"):
            get(cache_dir=tmp_path / "file" / "below")


class TestInUse:
    def test_what_is_open_is_not_removed(self, root: Path) -> None:
        cache = get()
        slot = store.find(root, "train")
        assert slot.is_in_use
        assert not slot.remove()
        assert cache[3] == (3, 9)
        del cache
        assert not slot.is_in_use
        assert slot.remove()
        assert not slot.path.exists()

    def test_what_another_process_has_open_is_in_use_until_it_dies(self, root: Path) -> None:
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        child = context.Process(target=_hold, args=(ready,))
        child.start()
        assert ready.wait(60)
        slot = store.find(root, "train")
        assert slot.is_in_use
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not slot.is_in_use


def _hold(ready: Any) -> None:
    cache = get()
    ready.set()
    time.sleep(600)
    del cache


class TestRaces:
    @pytest.mark.parametrize("seed", range(3))
    def test_of_eight_processes_one_builds_and_all_read_the_same(self, root: Path, seed: int) -> None:
        found = race(8, seed)
        assert len(set(found)) == 1, found

    def test_who_waits_says_how_far_the_other_one_is(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys.modules["shardcache.registry.waiting"], "_FIRST_S", 0.2)
        options = {"kwargs": {"size": 3000, "slow": 0.0005}, "block_bytes": 1000, "spot_check": 0}
        child = multiprocessing.get_context("fork").Process(target=get, kwargs=options)
        child.start()
        while not list(root.glob("train/*.partial/plan.json")):
            time.sleep(0.01)
        assert len(get(**options, progress=True)) == 3000
        child.join()
        assert "waiting for another process that builds 'train': " in capsys.readouterr().err


def _checked() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return len(get(spot_check=2))


def race(processes: int, seed: int) -> list[str]:
    """Who has built the cache that each process got: its inode and what it holds."""
    context = multiprocessing.get_context("fork")
    with context.Pool(processes) as pool:
        return pool.map(_race_one, [seed] * processes, chunksize=1)


def _race_one(seed: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = get(kwargs={"size": 100 + seed}, spot_check=2)
        return f"{os.stat(cache.path).st_ino} {built(cache)} {cache.digest} {[cache[i] for i in range(0, 100, 9)]}"
