"""What a build shows of itself in a terminal."""

import sys
from types import TracebackType
from typing import Any

from shardcache.builder.shards import Report


class Progress:
    """A bar with samples/s, MB/s, ratio and time left; nothing where standard error is not a terminal."""

    def __init__(self, samples: int, done: int, shown: bool) -> None:
        self._samples, self._done, self._raw, self._stored = samples, done, 0, 0
        self._shown = shown and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if self._shown:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("building"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("build", total=self._samples, completed=self._done, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, report: Report) -> None:
        """Count what was done."""
        self._raw += report.raw_bytes
        self._stored += report.stored_bytes
        if self._bar is None:
            return
        task = self._bar.tasks[0]
        elapsed = task.elapsed or 0
        done = task.completed + report.samples - self._done
        rate = f"{done / elapsed:,.0f} samples/s, {self._raw / elapsed / 1e6:,.0f} MB/s" if elapsed > 0 else ""
        ratio = f", ratio {self._raw / self._stored:.2f}" if self._stored else ""
        self._bar.update(self._task, advance=report.samples, rate=rate + ratio)
