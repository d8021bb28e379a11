"""A file system that fails: EIO, ESTALE and short transfers at each call that reading and building make.

``inject.c`` is preloaded into a process of its own, in which all trials are done; it lets one call fail.
"""

import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardcache import ShardCacheError
from tests.faults.children import in_children, judge
from tests.faults.figures import Figures, Outcome
from tests.faults.victims import Victim, build, epoch, readable, rows, small_limits, victim

FAULT = "EIO, ESTALE, short transfers at each call"
REQUIRED = "typed error, or right"
SHORT, LONG = 100, 1 << 20  # at most: there are as many trials as calls, times three

SHIM = Path(__file__).with_name("inject.c")
SHORT_TRANSFER = 0
FAILURES = (errno.EIO, errno.ESTALE, SHORT_TRANSFER)

Action = Callable[[Path], Any]


def by_map(path: Path) -> Any:
    return rows(path, "mmap")


def by_pread(path: Path) -> Any:
    return rows(path, "pread")


def in_batches(path: Path) -> Any:
    return epoch(path, "mmap")


def in_batches_by_pread(path: Path) -> Any:
    return epoch(path, "pread")


def building(path: Path) -> Any:
    """A new cache beside the old one."""
    build(Victim(), path.with_name("new"))


ACTIONS: tuple[Action, ...] = (by_map, by_pread, in_batches, in_batches_by_pread, building)


class Failing:
    """Trial n: one failure at one call of one action."""

    def __init__(self, path: Path, trials: int, seed: int) -> None:
        self.path, self.new = path, path.with_name("new")
        self.shim = ctypes.CDLL(None)
        self.shim.faults_name.restype = ctypes.c_char_p
        self.expected = readable(path)
        self.sites: list[tuple[Action, int, int, str]] = []
        for action in ACTIONS:
            for call, name in enumerate(self.calls(action)):
                kinds = FAILURES if "read" in name or name in ("write", "pwrite") else FAILURES[:2]
                self.sites += [(action, call, kind, name) for kind in kinds]
        if trials < len(self.sites):
            self.sites = random.Random(seed).sample(self.sites, trials)

    def calls(self, action: Action) -> list[str]:
        """The calls that an action makes when nothing fails."""
        action(self.path)  # what is done only once in a process has been done
        self.clear()
        self.shim.faults_arm(ctypes.c_long(-1), 0)
        action(self.path)
        count = self.shim.faults_disarm()
        self.clear()
        return [self.shim.faults_name(ctypes.c_long(call)).decode() for call in range(count)]

    def clear(self) -> None:
        shutil.rmtree(self.new, ignore_errors=True)
        shutil.rmtree(self.new.with_name("new.partial"), ignore_errors=True)

    def __call__(self, number: int) -> Outcome:
        action, call, kind, name = self.sites[number]
        self.shim.faults_arm(ctypes.c_long(call), kind)
        try:
            outcome = self.attempt(action)
        finally:
            self.shim.faults_disarm()
        if action is building:
            outcome = self.after(outcome)
            self.clear()
        what = errno.errorcode.get(kind, "short")
        return Outcome(outcome.kind, f"{what} at call {call} ({name}) {action.__name__}: {outcome.what}")

    def attempt(self, action: Action) -> Outcome:
        if action is not building:
            return judge(lambda: action(self.path), self.expected[action in (in_batches, in_batches_by_pread)], "")
        try:
            action(self.path)
        except ShardCacheError as error:
            return Outcome("refused", f"{type(error).__name__}: {error}")
        except BaseException as error:
            return Outcome("exception", f"{type(error).__name__}: {error}")
        return Outcome("right")

    def after(self, outcome: Outcome) -> Outcome:
        """The same build again, without a failure."""
        if outcome.kind == "right" or self.new.exists():
            found = readable(self.new)
        else:
            build(Victim(), self.new)
            found = readable(self.new)
        return outcome if found == self.expected else Outcome("silent", f"{outcome.what}; then other data")


def run(trials: int, seed: int) -> Figures:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return Figures(skipped="the layer that fails is preloaded: it needs Linux and a C compiler")
    with victim() as path:
        shim = path.with_name("inject.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, SHIM, "-ldl"], check=True)
        command = [sys.executable, "-m", "tests.faults.io_errors", str(path), str(trials), str(seed)]
        environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULTS_UNDER": str(path.parent)}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    figures = Figures(misses=found["misses"])
    figures.counts.update(found["counts"])
    return figures


def main() -> None:
    warnings.simplefilter("ignore")
    path, trials, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with small_limits():
        trial = Failing(path, trials, seed)
        figures = in_children(trial, len(trial.sites))
    sys.stdout.write(json.dumps({"counts": figures.counts, "misses": figures.misses}))


if __name__ == "__main__":
    main()
