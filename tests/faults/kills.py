"""kill -9 at any moment of a build, a publication over an old cache, a repair, and a removal; also of one worker."""

import functools
import gc
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import shardcache
from shardcache import verify
from shardcache.format import leases, spec
from shardcache.registry.keeping import listing, prunable, remove
from shardcache.registry.store import slots
from tests.faults.children import in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import CODECS, Victim, build, readable, small_limits, workshop

FAULT = "kill -9 while building, publishing, pruning, repairing"
REQUIRED = "nothing, or continued"
SHORT, LONG = 18, 500

WAYS = ("build", "worker", "replace", "repair", "share", "prune")
WORKERS = (0, 1, 2)
LATE = 1.2  # some are killed when all is done


def ended(
    work: Callable[[], object], seconds: float | None = None, whom: Callable[[int], list[int]] = lambda pid: [pid]
) -> int:
    """The exit status of a process of its own that does something, in which somebody is killed after so long."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        for one in whom(pid):
            with suppress(ProcessLookupError):  # a worker that has just ended by itself
                os.kill(one, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found += [int(status.parent.name)] * (status.read_text().rpartition(") ")[2].split()[1] == str(pid))
    return found


def contents(path: Path) -> dict[str, bytes]:
    """All files of a cache, but for the remark where it comes from."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != spec.PROVENANCE_NAME}


class Killed:
    """Trial n: one of the WAYS, killed at a moment of the time that it takes."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.path, self.seed = directory / "cache", seed
        self.whole = [directory / "whole 0", directory / "whole 1"]
        self.expected = [readable(build(Victim(salt=salt), whole).path) for salt, whole in enumerate(self.whole)]
        self.bytes = contents(self.whole[0])
        self.seconds = dict.fromkeys(WAYS, 0.0)
        for number, way in enumerate(WAYS):
            for workers in WORKERS:
                self.workers, start = (workers, 0), time.monotonic()
                self.trial(number, None)
                self.seconds[way] = max(self.seconds[way], self.took - start)

    def __call__(self, number: int) -> Outcome:
        draw = random.Random(f"{self.seed} {number}")
        self.workers = draw.choice(WORKERS), draw.choice(WORKERS)  # of what is killed, and of what continues it
        return self.trial(number, draw.random())

    def trial(self, number: int, moment: float | None) -> Outcome:
        way = WAYS[number % len(WAYS)]
        try:
            return getattr(self, way)(None if moment is None else LATE * moment * self.seconds[way])
        finally:
            leases.close_all()
            gc.collect()
            for left in [*self.path.parent.glob("cache*"), *self.path.parent.glob("shared")]:
                shutil.rmtree(left)

    def interrupted(self, work: Callable[[], object], seconds: float | None, **whom: Callable[[int], list[int]]) -> int:
        status = ended(work, seconds, **whom)
        self.took = time.monotonic()
        return status

    def build(self, seconds: float | None) -> Outcome:
        self.interrupted(lambda: build(Victim(), self.path, num_workers=self.workers[0]), seconds)
        outcome = Outcome("nothing")
        if self.path.exists():
            outcome = Outcome("new" if readable(self.path) == self.expected[0] else "silent", "published")
        elif self.path.with_name("cache.partial").exists():
            outcome = Outcome("continued")
        return self.again(outcome)

    def worker(self, seconds: float | None) -> Outcome:
        """Of a build: it goes on without."""
        workers = max(1, self.workers[0])
        status = self.interrupted(
            lambda: build(Victim(), self.path, num_workers=workers), seconds, whom=lambda pid: children_of(pid)[-1:]
        )
        if status:
            return Outcome("exception", f"the build ends with {status}")
        return self.again(Outcome("new" if readable(self.path) == self.expected[0] else "silent", "published"))

    def replace(self, seconds: float | None) -> Outcome:
        shutil.copytree(self.whole[1], self.path)
        work = functools.partial(build, Victim(), self.path, if_exists="replace", num_workers=self.workers[0])
        self.interrupted(work, seconds)
        outcome = Outcome("nothing", "between the two renames")
        if self.path.exists():
            found = readable(self.path)
            kind = "old" if found == self.expected[1] else "new" if found == self.expected[0] else "silent"
            outcome = Outcome(kind, "a mixture" if kind == "silent" else "")
        return self.again(outcome)

    def repair(self, seconds: float | None) -> Outcome:
        """Of a cache whose first shard is damaged and whose last one is gone."""
        shutil.copytree(self.whole[0], self.path)
        shards = sorted(self.path.glob("shard-*"))
        with (self.path / spec.shard_name(0)).open("r+b") as file:
            file.seek(9000)
            file.write(b"damage")
        shards[-1].unlink()
        sound = {shard: shard.read_bytes() for shard in shards[1:-1]}
        self.interrupted(
            lambda: shardcache.repair(self.path, Victim(), num_workers=self.workers[0], progress=False), seconds
        )
        if any(shard.read_bytes() != data for shard, data in sound.items()):
            return Outcome("silent", "a shard that was sound has changed")
        shardcache.repair(self.path, Victim(), progress=False)
        if not verify(self.path) or readable(self.path) != self.expected[0]:
            return Outcome("lost", "repaired again, it is not what it was")
        left = {file.name for file in self.path.iterdir()} - {file.name for file in self.whole[0].iterdir()}
        left |= {file.name for file in self.path.parent.glob("cache?*")}
        return Outcome("left", f"{left} after the repair") if left else Outcome("continued")

    def share(self, seconds: float | None) -> Outcome:
        """A cache that experiments share, while the first one builds it."""
        root = self.path.with_name("shared")
        root.mkdir(mode=0o700)

        def get(workers: int) -> shardcache.Cache:
            options = {"codec": CODECS, "block_bytes": 3 << 10, "force": True, "num_workers": workers}
            return shardcache.get_or_build(Victim(), name="victim", cache_dir=root, progress=False, **options)

        self.interrupted(lambda: get(self.workers[0]), seconds)
        published, begun = [slot.is_published for slot in slots(root)] == [True], bool(slots(root))
        outcome = Outcome("new" if published else "continued" if begun else "nothing")
        cache = get(self.workers[1])
        if readable(cache.path) != self.expected[0]:
            return Outcome("silent", f"{outcome.kind}, and then other data")
        left = [file.name for file in cache.path.parent.iterdir() if file.suffix not in ("", ".lock", ".json", ".used")]
        return Outcome("left", f"{left} after {outcome.kind}") if left or len(slots(root)) != 1 else outcome

    def prune(self, seconds: float | None) -> Outcome:
        """Of caches that experiments share: each is there, whole, or gone; what is left of it goes the next time."""
        root = self.path.with_name("shared")
        for key in ("0" * 32, "1" * 32):
            shutil.copytree(self.whole[0], root / "victim" / key)
        root.chmod(0o700)
        self.interrupted(lambda: remove(prunable(listing(root), 0, None)), seconds)
        there = [slot.path for slot in slots(root) if slot.path.exists()]
        if any(readable(path) != self.expected[0] for path in there):
            return Outcome("silent", "a part of a cache")
        leases.close_all()
        gc.collect()
        if remove(prunable(listing(root), 0, None))[1]:
            return Outcome("lost", "nobody has it, and it cannot be removed")
        left = [file.name for file in (root / "victim").iterdir() if file.suffix != ".lock"]
        return Outcome("left", f"{left}, {len(there)} were there") if left else Outcome("old" if there else "nothing")

    def again(self, outcome: Outcome) -> Outcome:
        """The same call, undisturbed, with another number of workers."""
        if outcome.kind == "silent":
            return outcome
        leases.close_all()
        gc.collect()
        build(Victim(), self.path, if_exists="replace", num_workers=self.workers[1])
        if readable(self.path) != self.expected[0]:
            return Outcome("silent", f"{outcome.kind}, and then other data")
        if contents(self.path) != self.bytes:
            return Outcome("silent", f"{outcome.kind}, and then other bytes")
        left = [file.name for file in self.path.parent.glob("cache?*")]
        return Outcome("left", f"{left} after {outcome.kind}") if left else outcome


def run(asked: Asked) -> Figures:
    with workshop() as directory, small_limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return in_children(Killed(directory, asked.seed), asked.numbers)
