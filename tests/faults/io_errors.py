"""A file system that fails: each call that reading, building and keeping caches make, in each way that is usual.

``inject.c`` is preloaded into a process of its own, in which all trials are done; it lets one call fail. EDQUOT is what
a quota says, and ENOSPC a full disk; both may come as late as when a file is closed.
"""

import ctypes
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shardcache
from shardcache import ShardCacheError, StorageError, verify
from shardcache.format import leases, spec
from shardcache.registry.keeping import listing, prunable, remove
from tests.faults.children import in_children, judge, told
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import CODECS, Readable, Victim, build, epoch, readable, rows, small_limits, victim

FAULT = "EIO, ESTALE, a quota, short transfers at each call"
REQUIRED = "typed error, or right"
SHORT, LONG = 100, 1 << 20  # at most: there are as many trials as calls, times the ways to fail

SHIM = Path(__file__).with_name("inject.c")
SHORT_TRANSFER = 0
TRANSFERS = ("read", "pread", "write", "pwrite", "readv", "preadv", "writev", "pwritev")
TAKES_ROOM = ("write", "pwrite", "writev", "pwritev", "create", "mkdir", "rename", "link", "ftruncate", "fsync")
TAKES_ROOM += ("fdatasync", "close")


def ways(call: str) -> list[int]:
    """How a call may fail."""
    short = [SHORT_TRANSFER] * (call in TRANSFERS)
    return [errno.EIO, errno.ESTALE, *short, *[errno.ENOSPC, errno.EDQUOT] * (call in TAKES_ROOM)]


@dataclass
class Reading:
    """Something that gives data: these, or an error that says where."""

    name: str
    path: Path
    expected: Readable

    def prepare(self) -> None: ...

    def act(self) -> Any:
        if self.name == "verify":
            leases.close_all()
            return verify(self.path, num_workers=0)
        read, io = self.name.split()
        return (epoch if read == "epoch" else rows)(self.path, io)

    def judge(self, _: int) -> Outcome:
        if self.name != "verify":
            return judge(self.act, self.expected[self.name.startswith("epoch")], "")
        outcome = judge(lambda: bool(self.act()), True, "")
        return Outcome("refused", "reported") if outcome.kind == "silent" else outcome

    def after(self) -> str:
        return ""


@dataclass
class Writing:
    """Something that makes or changes a cache. Where it says that it failed, nobody sees the half of it, and the same
    again is done. Where it does not say so, it is done.
    """

    name: str
    path: Path
    expected: Readable

    @property
    def work(self) -> Path:
        return self.path.with_name("work")

    def clear(self) -> None:
        leases.close_all()
        gc.collect()
        for left in self.path.parent.glob("work*"):
            shutil.rmtree(left)

    def prepare(self) -> None:
        self.clear()
        if self.name in ("replace", "repair"):
            shutil.copytree(self.path, self.work)
        if self.name == "repair":
            os.truncate(self.work / spec.shard_name(0), 9000)
        if self.name in ("share", "reuse", "prune"):
            self.work.mkdir(mode=0o700)
        if self.name in ("reuse", "prune"):
            self.share()
            leases.close_all()
            gc.collect()

    def share(self) -> Readable:
        cache = shardcache.get_or_build(
            Victim(), name="victim", cache_dir=self.work, progress=False, block_bytes=3 << 10, codec=CODECS, force=True
        )
        return readable(cache.path)

    def act(self) -> None:
        if self.name in ("build", "replace"):
            build(Victim(), self.work, if_exists="replace")
        elif self.name == "repair":
            assert shardcache.repair(self.work, Victim(), progress=False)
        elif self.name == "prune":
            remove(prunable(listing(self.work), 0, None))
        else:
            self.share()

    def judge(self, way: int) -> Outcome:
        try:
            self.act()
        except ShardCacheError as error:
            text = f"{type(error).__name__}: {error}"
            if way in (errno.ENOSPC, errno.EDQUOT) and not isinstance(error, StorageError):
                return Outcome("unnamed", text)
            return Outcome("refused", text)
        except BaseException as error:
            return Outcome("exception", told(error))
        return Outcome("right")

    def after(self) -> str:
        """What is wrong with what is there now, and after the same again without a failure."""
        gc.collect()
        if self.name in ("build", "replace") and self.work.exists() and readable(self.work) != self.expected:
            return "what is there has other data"
        if self.name == "replace" and not self.work.exists():
            return "the old cache is gone"
        leases.close_all()
        gc.collect()
        self.act()
        if self.name == "prune":
            left = [file.name for file in self.work.glob("*/*") if file.suffix != ".lock"]
            return f"{left} are left of what was deleted" if left else ""
        cache = (
            self.work if self.name in ("build", "replace", "repair") else next(self.work.glob(f"*/{'[0-9a-f]' * 32}"))
        )
        if not verify(cache, num_workers=0) or readable(cache) != self.expected:
            return "and once more has other data"
        left = [file.name for file in self.path.parent.glob("work?*")]
        return f"{left} are left" if left else ""


Action = Reading | Writing
READING = ("rows mmap", "rows pread", "epoch mmap", "epoch pread", "verify")
WRITING = ("build", "replace", "repair", "share", "reuse", "prune")


class Failing:
    """Trial n: one failure at one call of one action."""

    def __init__(self, path: Path, asked: Asked) -> None:
        self.shim = ctypes.CDLL(None)
        self.shim.faults_name.restype = ctypes.c_char_p
        expected = readable(path)
        actions: list[Action] = [Reading(name, path, expected) for name in READING]
        actions += [Writing(name, path, expected) for name in WRITING]
        sites = []
        for action in actions:
            for call, name in enumerate(self.calls(action)):
                sites += [(action, call, way, name) for way in ways(name)]
        self.sites = asked.order(sites)

    def calls(self, action: Action) -> list[str]:
        """The calls that an action makes when nothing fails."""
        for call in (0, -1):  # what is done only once in a process has been done when they are counted
            action.prepare()
            self.shim.faults_arm(ctypes.c_long(call), SHORT_TRANSFER)
            action.act()
            count = self.shim.faults_disarm()
        if isinstance(action, Writing):
            action.clear()
        return [self.shim.faults_name(ctypes.c_long(call)).decode() for call in range(count)]

    def __call__(self, number: int) -> Outcome:
        action, call, way, name = self.sites[number]
        what = f"{errno.errorcode.get(way, 'short')} at call {call} ({name}) of {action.name}"
        action.prepare()
        self.shim.faults_arm(ctypes.c_long(call), way)
        try:
            outcome = action.judge(way)
        finally:
            self.shim.faults_disarm()
        try:
            wrong = action.after()
        except Exception as error:
            wrong = f"and once more: {told(error)}"
        return Outcome("silent" if wrong else outcome.kind, f"{what}: {outcome.what}; {wrong}")


def run(asked: Asked) -> Figures:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return Figures(skipped="the layer that fails is preloaded: it needs Linux and a C compiler")
    with victim() as path:
        shim = path.with_name("inject.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, SHIM, "-ldl"], check=True)
        numbers = map(str, (asked.trials, asked.seed, asked.first))
        command = [sys.executable, "-m", "tests.faults.io_errors", str(path), *numbers]
        environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULTS_UNDER": str(path.parent)}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    return Figures(**{**found, "counts": Counter(found["counts"])})


def main() -> None:
    warnings.simplefilter("ignore")
    asked = Asked(*map(int, sys.argv[2:]))
    with small_limits():
        trial = Failing(Path(sys.argv[1]), asked)
        figures = in_children(trial, asked.within(len(trial.sites)))
    calls = sorted({name for _, _, _, name in trial.sites})
    notes = [f"{len(trial.sites):,} ways to fail, at {', '.join(calls)}"]
    sys.stdout.write(json.dumps({"counts": figures.counts, "misses": figures.misses, "notes": notes}))


if __name__ == "__main__":
    main()
