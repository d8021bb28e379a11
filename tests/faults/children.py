"""Trials in forked children, where a signal, a hang or a flood of memory ends the child and is counted as the trial's.

One child does many trials, one after another, and writes a line for each. When it ends before its last trial, the one
whose line is missing has killed it, and a new child goes on behind it.
"""

import gc
import json
import os
import resource
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from shardcache import CacheError, MissingExtraError, ShardCacheError
from tests.faults.figures import Figures, Outcome
from tests.faults.hangs import Watch

HANG_S = 30.0
PER_CHILD = 5_000  # nothing that a trial leaves behind adds up
MAX_TEXT = 600
FRAMES = 6  # of the place where an exception was raised

Trial = Callable[[int], Outcome]


def in_children(
    trial: Trial,
    numbers: range,
    *,
    hang_s: float = HANG_S,
    memory_bytes: int | None = None,
    prepare: Callable[[], Any] | None = None,
) -> Figures:
    """Do the trials of these numbers.

    ``prepare`` runs first in each child. Where ``memory_bytes`` is given, a trial whose process held more than that
    beyond what it held after ``prepare``, at any moment, ends as ``memory``.
    """
    figures, child = Figures(), _Child(trial, hang_s, memory_bytes, prepare)
    while numbers:
        done = child.run(numbers[:PER_CHILD], figures)
        numbers = numbers[done:]
    return figures


def judge(read: Callable[[], Any], expected: Any, place: str) -> Outcome:
    """How reading ended: with what was expected, or with a typed error whose text has ``place`` in it."""
    try:
        found = read()
    except ShardCacheError as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome("refused" if place in text else "unnamed", text)
    except BaseException as error:
        return Outcome("exception", told(error))
    return Outcome("right") if found == expected else Outcome("silent", "other data, and no error")


def attempt(action: Callable[[], Any]) -> Outcome:
    """How an action on a hostile cache ended: it may do (``served``), or be refused in words that name a place."""
    try:
        action()
    except (CacheError, MissingExtraError) as error:
        text = f"{type(error).__name__}: {error}"
        named = any(word in text for word in ("manifest.json", "shard ", "column"))
        return Outcome("refused" if named else "unnamed", text)
    except BaseException as error:
        return Outcome("exception", told(error))
    return Outcome("served")


def told(error: BaseException) -> str:
    """What an exception that nobody expected says, and where it comes from."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}: {error} ({where})"


class Aside:
    """A process of its own that calls ``action``, so that what that takes is not the memory of who asks for it.

    It ends with the process that made it.
    """

    def __init__(self, action: Callable[[int], object]) -> None:
        asked, self._asks = os.pipe()
        self._answers, done = os.pipe()
        if not fork():
            os.close(self._asks)
            try:
                while number := os.read(asked, 8):
                    action(int.from_bytes(number, "big"))
                    os.write(done, b".")
            finally:
                os._exit(0)
        os.close(asked)
        os.close(done)

    def __call__(self, number: int) -> None:
        """Have it done, and wait for that."""
        os.write(self._asks, number.to_bytes(8, "big"))
        if not os.read(self._answers, 1):
            raise AssertionError(f"the process beside has failed at {number}")


def fork() -> int:
    """``os.fork``, of a process that has other threads or not: campaigns start none that hold a lock here."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@dataclass(frozen=True)
class _Child:
    trial: Trial
    hang_s: float
    memory_bytes: int | None
    prepare: Callable[[], Any] | None

    def run(self, numbers: range, figures: Figures) -> int:
        """How many of these trials are done when the child has ended."""
        reading, writing = os.pipe()
        with Watch() as watch:
            pid = fork()
            if not pid:
                os.close(reading)
                watch.begin()
                self._work(numbers, writing)
            os.close(writing)
            with os.fdopen(reading, "rb") as lines:
                done, last = self._listen(lines, pid, watch, figures)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if last is None and status:
            name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            last = Outcome("signal", name)
        if last is not None:
            figures.add(last, numbers[done])
            done += 1
        return done

    def _listen(self, lines: IO[bytes], pid: int, watch: Watch, figures: Figures) -> tuple[int, Outcome | None]:
        """(trials that have ended, the hang that ended the child)."""
        done = 0
        while True:
            if not select.select([lines], [], [], self.hang_s)[0] and not watch.outlasts(pid, lines, self.hang_s):
                return done, Outcome("hang", f"no answer within {self.hang_s:g} s{watch.end(pid)}")
            line = lines.readline()
            if not line:
                return done, None
            number, kind, what = json.loads(line)
            figures.add(Outcome(kind, what), number)
            done += 1

    def _work(self, numbers: range, writing: int) -> NoReturn:
        """The life of a child."""
        code = 1
        try:
            torch.set_num_threads(1)  # the threads of the parent are not here
            forkserver._forkserver._forkserver_pid = None  # nor is its fork server a child of this process
            warnings.simplefilter("ignore")
            if self.prepare is not None:
                self.prepare()
            gc.collect()
            gc.freeze()  # modules and the like: what trials collect is theirs, and little
            baseline = _peak_bytes()
            for number in numbers:
                outcome = self.trial(number)
                used = _peak_bytes() - baseline
                if self.memory_bytes is not None and used > self.memory_bytes:
                    outcome = Outcome("memory", f"{used >> 20} MiB more than before, after {outcome}")
                text = outcome.what[:MAX_TEXT] if outcome.kind != "right" else ""
                os.write(writing, json.dumps([number, outcome.kind, text]).encode() + b"\n")
                if outcome.kind == "memory":
                    break
            code = 0
        except BaseException as error:  # the campaign itself is wrong: seen as exit code 1 of this trial
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise
        finally:
            os._exit(code)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
