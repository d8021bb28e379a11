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
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import torch

from shardcache import CacheError, MissingExtraError, ShardCacheError
from tests.faults.figures import Figures, Outcome

HANG_S = 30.0
PER_CHILD = 5_000  # nothing that a trial leaves behind adds up
MAX_TEXT = 600

Trial = Callable[[int], Outcome]


def in_children(
    trial: Trial,
    trials: int,
    *,
    hang_s: float = HANG_S,
    memory_bytes: int | None = None,
    prepare: Callable[[], Any] | None = None,
) -> Figures:
    """Do ``trial(0)`` to ``trial(trials - 1)``.

    ``prepare`` runs first in each child. Where ``memory_bytes`` is given, a trial whose process held more than that
    beyond what it held after ``prepare``, at any moment, ends as ``memory``.
    """
    figures, first = Figures(), 0
    while first < trials:
        last = min(trials, first + PER_CHILD)
        first = _one_child(trial, first, last, figures, hang_s, memory_bytes, prepare)
    return figures


def judge(read: Callable[[], Any], expected: Any, place: str) -> Outcome:
    """How reading ended: with what was expected, or with a typed error whose text has ``place`` in it."""
    try:
        found = read()
    except ShardCacheError as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome("refused" if place in text else "unnamed", text)
    except BaseException as error:
        return Outcome("exception", f"{type(error).__name__}: {error}")
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
        return Outcome("exception", f"{type(error).__name__}: {error}")
    return Outcome("served")


def _one_child(
    trial: Trial,
    first: int,
    last: int,
    figures: Figures,
    hang_s: float,
    memory_bytes: int | None,
    prepare: Callable[[], Any] | None,
) -> int:
    """The number of the trial at which the next child begins."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that other threads of this process are not in the child
        pid = os.fork()
    if not pid:
        os.close(reading)
        _work(trial, first, last, writing, memory_bytes, prepare)
    os.close(writing)
    done = first
    with os.fdopen(reading, "rb") as lines:
        while select.select([lines], [], [], hang_s)[0] and (line := lines.readline()):
            number, kind, what = json.loads(line)
            if number >= 0:
                figures.add(Outcome(kind, what), number)
                done = number + 1
        hangs = not select.select([lines], [], [], 0)[0]
    if hangs:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if hangs:
        figures.add(Outcome("hang", f"no answer within {hang_s:g} s"), done)
        return done + 1
    if status:
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        figures.add(Outcome("signal", name), done)
        return done + 1
    return done


def _work(
    trial: Trial,
    first: int,
    last: int,
    writing: int,
    memory_bytes: int | None,
    prepare: Callable[[], Any] | None,
) -> None:
    """The life of a child; it never returns."""
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent are not here
        forkserver._forkserver._forkserver_pid = None  # nor is its fork server a child of this process
        warnings.simplefilter("ignore")
        if prepare is not None:
            prepare()
        gc.collect()
        baseline = _peak_bytes()
        for number in range(first, last):
            outcome = trial(number)
            used = _peak_bytes() - baseline
            if memory_bytes is not None and used > memory_bytes:
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
