"""kill -9 at any moment of a build, a publication over an old cache, a repair, and a removal."""

import gc
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import shardcache
from shardcache import verify
from shardcache.format import leases, spec
from shardcache.registry.store import Slot
from tests.faults.children import in_children
from tests.faults.figures import Figures, Outcome
from tests.faults.victims import Victim, build, readable, small_limits, workshop

FAULT = "kill -9 while building, publishing, pruning, repairing"
REQUIRED = "nothing, or continued"
SHORT, LONG = 16, 500
REMOVAL = 0.05  # of the time of a build


def interrupted(work: Callable[[], object], seconds: float) -> bool:
    """Do something in a process of its own that is killed after so long; whether it had ended by then."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def contents(path: Path) -> dict[str, bytes]:
    """All files of a cache, but for the remark where it comes from."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != spec.PROVENANCE_NAME}


class Killed:
    def __init__(self, directory: Path, seed: int) -> None:
        self.path, self.seed = directory / "cache", seed
        self.whole = [directory / "whole 0", directory / "whole 1"]
        self.expected = []
        for salt, whole in enumerate(self.whole):
            start = time.monotonic()
            build(Victim(salt=salt), whole)
            self.seconds = 1.3 * (time.monotonic() - start)
            self.expected.append(readable(whole))
        self.bytes = contents(self.whole[0])

    def __call__(self, number: int) -> Outcome:
        draw = random.Random(f"{self.seed} {number}")
        trial = (self.build, self.replace, self.repair, self.prune)[number % 4]
        self.workers = draw.sample([0, 0, 1, 2], 2)  # of the build that is killed, and of that which continues it
        try:
            return trial(draw.random() * self.seconds)
        finally:
            leases.close_all()
            gc.collect()
            for left in [*self.path.parent.glob("cache*"), *self.path.parent.glob("shared")]:
                shutil.rmtree(left)

    def build(self, seconds: float) -> Outcome:
        interrupted(lambda: build(Victim(), self.path, num_workers=self.workers[0]), seconds)
        outcome = Outcome("nothing")
        if self.path.exists():
            outcome = Outcome("new" if readable(self.path) == self.expected[0] else "silent", "published")
        elif self.path.with_name("cache.partial").exists():
            outcome = Outcome("continued")
        return self.again(outcome)

    def replace(self, seconds: float) -> Outcome:
        shutil.copytree(self.whole[1], self.path)
        interrupted(lambda: build(Victim(), self.path, if_exists="replace", num_workers=self.workers[0]), seconds)
        outcome = Outcome("nothing", "between the two renames")
        if self.path.exists():
            found = readable(self.path)
            kind = "old" if found == self.expected[1] else "new" if found == self.expected[0] else "silent"
            outcome = Outcome(kind, "a mixture" if kind == "silent" else "")
        return self.again(outcome)

    def repair(self, seconds: float) -> Outcome:
        """Of a cache whose first shard is damaged and whose last one is gone."""
        shutil.copytree(self.whole[0], self.path)
        shards = sorted(self.path.glob("shard-*"))
        with (self.path / spec.shard_name(0)).open("r+b") as file:
            file.seek(9000)
            file.write(b"damage")
        shards[-1].unlink()
        sound = {shard: shard.read_bytes() for shard in shards[1:-1]}
        interrupted(lambda: shardcache.repair(self.path, Victim()), seconds)
        if any(shard.read_bytes() != data for shard, data in sound.items()):
            return Outcome("silent", "a shard that was sound has changed")
        shardcache.repair(self.path, Victim())
        if not verify(self.path) or readable(self.path) != self.expected[0]:
            return Outcome("lost", "repaired again, it is not what it was")
        left = {file.name for file in self.path.iterdir()} - {file.name for file in self.whole[0].iterdir()}
        return Outcome("left", f"{left} after the repair") if left else Outcome("continued")

    def prune(self, seconds: float) -> Outcome:
        """Of a cache that experiments share: it is there, whole, or gone; and what is left of it goes the next time."""
        slot = Slot(self.path.parent / "shared", "0" * 32)
        slot.folder.mkdir()
        shutil.copytree(self.whole[0], slot.path)
        interrupted(slot.remove, seconds * REMOVAL)
        outcome = Outcome("nothing")
        if slot.path.exists():
            is_whole = readable(slot.path) == self.expected[0]
            outcome = Outcome("old" if is_whole else "silent", "" if is_whole else "a part of it")
        leases.close_all()
        gc.collect()
        if outcome.kind != "silent" and not slot.remove():
            return Outcome("lost", "nobody has it, and it cannot be removed")
        left = [file.name for file in slot.folder.iterdir() if file.suffix != ".lock"]
        return Outcome("left", f"{left} after {outcome.kind}") if left else outcome

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


def run(trials: int, seed: int) -> Figures:
    with workshop() as directory, small_limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return in_children(Killed(directory, seed), trials)
