"""What a build shows of itself: a bar in a terminal, a line now and then in a log, events for a program."""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from shardcache.builder.estimate import Estimate
from shardcache.builder.shards import Report
from shardcache.errors import UsageError
from shardcache.wording import duration, plain, saving

LINE_SECONDS = 30.0
_EVENT_SECONDS = 1.0

Events = Callable[[dict[str, Any]], None]


class State(msgspec.Struct, frozen=True):
    """How far a build is; ``samples_done`` and bytes count what an interrupted build had done, the rate does not.

    ``samples`` is 0 where nobody knows how many there will be; ``seconds`` is since this build went on,
    ``seconds_left`` None while nobody can tell.
    None while nobody can tell.
    """

    samples_done: int
    samples: int
    raw_bytes: int
    stored_bytes: int
    seconds: float
    samples_per_second: float
    seconds_left: float | None

    def __str__(self) -> str:
        if not self.samples:  # nobody knows how many there will be
            far = f"{self.samples_done:,} samples"
        else:
            far = f"{self.samples_done:,} of {self.samples:,} samples ({self.samples_done / self.samples:.0%})"
        return f"{far}, {saving(self.raw_bytes, self.stored_bytes)}, {self.samples_per_second:,.0f} samples/s"


class Listener(Protocol):
    """Where it is shown. ``every``: seconds between two updates, at least."""

    every: float

    def expect(self, target: Path, expected: Estimate) -> None:
        """Before the work begins."""

    def update(self, state: State) -> None:
        """During the work."""

    def end(self, state: State) -> None:
        """When there is no more of it, or it failed."""


def listener(progress: "bool | Events") -> Listener:
    """What ``progress=`` asks for."""
    if callable(progress):
        return _Program(progress)
    if not isinstance(progress, bool):
        raise UsageError(f"progress must be True, False or a callable that gets events, was {progress!r}")
    if not progress or sys.stderr is None:
        return _Nobody()
    return _Terminal() if sys.stderr.isatty() else _Log()


class _Nobody:
    every = float("inf")

    def expect(self, target: Path, expected: Estimate) -> None: ...

    def update(self, state: State) -> None: ...

    def end(self, state: State) -> None: ...


class _Log:
    """Lines on standard error."""

    def __init__(self) -> None:
        self.every = LINE_SECONDS

    def expect(self, target: Path, expected: Estimate) -> None:
        self._say(f"building {target}: {expected}")
        self._say(f"columns: {expected.describe()}")

    def update(self, state: State) -> None:
        left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
        self._say(f"{state}{left}")

    def end(self, state: State) -> None:
        self._say(f"{state}, in {duration(state.seconds)}")

    def _say(self, text: str) -> None:
        sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()


class _Terminal(_Log):
    """A bar that goes away when it is done."""

    def __init__(self) -> None:
        self.every = 0.1
        self._bar: Any = None
        self._task: Any = None

    def update(self, state: State) -> None:
        if self._bar is None:
            self._start(state)
        rate = f"{state.samples_per_second:,.0f} samples/s, {state.raw_bytes / 1e6:,.0f} MB"
        ratio = f", ratio {state.raw_bytes / state.stored_bytes:.2f}" if state.stored_bytes else ""
        left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
        self._bar.update(self._task, completed=state.samples_done, rate=rate + ratio + left)

    def _start(self, state: State) -> None:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("building"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
        )
        self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("build", total=state.samples or None, rate="")
        self._bar.start()

    def end(self, state: State) -> None:
        self.update(state)
        self._bar.stop()


class _Program:
    """One dict an event."""

    def __init__(self, events: Events) -> None:
        self.every, self._events = _EVENT_SECONDS, events

    def expect(self, target: Path, expected: Estimate) -> None:
        self._events({"event": "estimate", "path": str(target), **expected.as_dict()})

    def update(self, state: State) -> None:
        self._events({"event": "progress", **msgspec.to_builtins(state)})

    def end(self, state: State) -> None:
        self.update(state)


class Progress:
    """Counts what is done, shard by shard: one that is begun anew after its worker died counts from its beginning.

    ``done`` are reports of shards that were there before.
    """

    def __init__(self, samples: int, listener: Listener, done: Iterable[Report] = ()) -> None:
        self._samples, self._listener = samples, listener
        self._shards: dict[int, Report] = {}
        self._sum = [0, 0, 0]
        for report in done:
            self._count(report)
        self._before, self._began = self._sum[0], time.monotonic()
        self._due = self._began + listener.every

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.end(self.state())

    def __call__(self, report: Report) -> None:
        """Count what was done of a shard."""
        self._count(report)
        if (now := time.monotonic()) >= self._due:
            self._due = now + self._listener.every
            self._listener.update(self.state())

    def _count(self, report: Report) -> None:
        before = self._shards.get(report.shard, Report(report.shard, 0, 0, 0))
        self._shards[report.shard] = report
        for number, name in enumerate(("samples", "raw_bytes", "stored_bytes")):
            self._sum[number] += getattr(report, name) - getattr(before, name)

    def state(self) -> State:
        """How far it is."""
        done, raw, stored = self._sum
        seconds = time.monotonic() - self._began
        rate = (done - self._before) / seconds if seconds > 0 else 0.0
        left = round((self._samples - done) / rate, 3) if rate > 0 and self._samples else None
        return State(done, self._samples, raw, stored, round(seconds, 3), round(rate, 3), left)
