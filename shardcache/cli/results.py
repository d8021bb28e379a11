"""Standard output is for results: what the dataset's code prints goes elsewhere, and events are a line each."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import click

from shardcache.cli.text import print_table
from shardcache.errors import ShardCacheError, ShardCacheWarning, SourceError
from shardcache.wording import plain, ratio, size

if TYPE_CHECKING:
    from shardcache.builder.estimate import Estimate


class Events:
    """JSON objects on standard output, one a line, while a build goes on: warnings and errors too."""

    def __init__(self, results: TextIO, shown: bool) -> None:
        self._results, self._shown = results, shown
        self._warnings = warnings.catch_warnings()

    def say(self, event: dict[str, Any]) -> None:
        self._results.write(json.dumps(event, allow_nan=False) + "\n")
        self._results.flush()

    def __enter__(self) -> "Events":
        self._warnings.__enter__()
        if self._shown:
            show = warnings.showwarning

            def say_too(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
                if issubclass(category, ShardCacheWarning):
                    self.say({"event": "warning", "message": str(message)})
                show(message, category, *rest, **more)

            warnings.showwarning = say_too
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warnings.__exit__(kind, error, trace)
        if self._shown and isinstance(error, ShardCacheError):
            code = error.exit_code
            self.say({"event": "error", "type": type(error).__name__, "message": str(error), "exit_code": code})


def print_event(event: dict[str, Any]) -> None:
    """The last event of a command."""
    click.echo(json.dumps(event, allow_nan=False))


def print_estimate(expected: "Estimate", as_json: bool) -> None:
    """What ``--dry-run`` prints."""
    if as_json:
        print_event({"event": "estimate", **expected.as_dict()})
        return
    click.echo(plain(str(expected)))
    if expected.free_bytes is not None:
        click.echo(f"free there: {size(expected.free_bytes)}")
    if expected.scattered_ms is not None and expected.neighbouring_ms is not None:
        random, in_order = expected.scattered_ms, expected.neighbouring_ms
        click.echo(f"reading: {random:.3g} ms a sample at random, {in_order:.3g} ms after its neighbour")
    if expected.random:
        click.echo(plain(f"random: {', '.join(expected.random)}; a build refuses this without --allow-random"))
    click.echo()
    rows = [
        (one.name, one.type, size(one.stored_bytes), ratio(one.raw_bytes, one.stored_bytes), one.codec, one.why)
        for one in expected.columns
        if not one.name.endswith("/") or one.raw_bytes
    ]
    print_table(("column", "holds", "bytes", "ratio", "codec", "why"), rows, right=("bytes", "ratio"))


@contextmanager
def results_only() -> Iterator[TextIO]:
    """The dataset's code may print: that goes to standard error, from worker processes and from C too.

    Gives what still writes to standard output.
    """
    sys.stdout.flush()
    results = sys.stdout
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        kept = -1
    try:
        if kept >= 0:
            if _is_descriptor(results, 1):
                results = open(os.dup(kept), "w", encoding="ascii", errors="backslashreplace")  # noqa: SIM115
            os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield results
    except SystemExit as error:
        raise SourceError(f"the code of the dataset ended the program: SystemExit({error.code!r})") from error
    finally:
        if results is not sys.stdout:
            results.close()
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (AttributeError, OSError, ValueError):
        return False
