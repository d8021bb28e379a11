"""What a call says while it builds, waits, or checks: to a terminal, to the log, or to standard error."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from shardcache.builder.staging import progress_of

log = logging.getLogger("shardcache")

_FIRST_S = 2.0
_SAY_EVERY_S = 30.0


def say(text: str, shown: bool) -> None:
    """A line for the log, and where it is ``shown`` for standard error."""
    log.info(text)
    if shown:
        sys.stderr.write(f"{text}\n")


class Waiting:
    """How far another process is with its build: a bar in a terminal, else a line from time to time."""

    def __init__(self, name: str, path: Path, shown: bool) -> None:
        self._name, self._path, self._shown = name, path, shown
        self._due = time.monotonic() + _FIRST_S
        self._bar: Any = None

    def __call__(self) -> None:
        """Say it, if it is time to."""
        if self._shown and sys.stderr.isatty():
            self._show()
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + _SAY_EVERY_S
            found = progress_of(self._path)
            far = f"{found[0]} of {found[1]} shards" if found else "at its beginning"
            say(f"waiting for another process that builds {self._name!r}: {far}", self._shown)

    def _show(self) -> None:
        if self._bar is None:
            from rich import progress
            from rich.console import Console

            text = progress.TextColumn(f"waiting for another process that builds {self._name}")
            columns = (text, progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("wait", total=None)
            self._bar.start()
        done, total = progress_of(self._path) or (0, None)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
