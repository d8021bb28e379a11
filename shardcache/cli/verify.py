"""``shardcache verify``."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from shardcache.cli.options import cache_argument, debug_option, json_option, print_json
from shardcache.errors import DamagedError
from shardcache.wording import count, duration, plain, size

if TYPE_CHECKING:
    from shardcache.integrity.report import Report

_SHOWN = 50


@click.command("verify")
@cache_argument
@click.option("-j", "--num-workers", type=int, metavar="N", help="Threads.  [default: one a core, at most 4]")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code says it.")
@click.option("--expect", metavar="DIGEST", help="The digest that it must have ('shardcache info --digest').")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context, directory: str, num_workers: int | None, quiet: bool, expect: str | None, as_json: bool
) -> None:
    """Read every byte of a cache, and decode every value.

    The exit code is 0 where all is as it was written, and 6 where something is not; then each problem is listed
    with the samples that are lost.
    """
    import shardcache

    start = time.perf_counter()
    with _bar(not quiet) as progress:
        report = shardcache.verify(directory, expect=expect, num_workers=num_workers, progress=progress)
    if as_json:
        print_json(report.as_dict())
    elif not quiet:
        _print(directory, report, time.perf_counter() - start)
    ctx.exit(0 if report else DamagedError.exit_code)


def _print(directory: str, report: "Report", seconds: float) -> None:
    from shardcache.integrity.report import UNEXPECTED

    for problem in report.problems[:_SHOWN]:
        click.echo(plain(f"{problem.file}: {problem.what}"))
        click.echo(plain(f"    {problem.consequence}"))
    if len(report.problems) > _SHOWN:
        click.echo(f"... and {count(len(report.problems) - _SHOWN, 'more problem')} (--json lists all)")
    for note in report.notes:
        click.echo(plain(f"note: {note}"))
    m = report.manifest
    if m is None:
        click.echo(plain(f"{directory}: damaged: the manifest cannot be read"))
    elif report.problems and report.problems[0].kind == UNEXPECTED:
        click.echo(plain(f"{directory}: not the cache that was expected"))
    elif report:
        what = f"{count(m.kept, 'sample')} in {count(len(m.shards), 'shard')}"
        read = f"{size(sum(seal.file_bytes for seal in m.shards))} read in {duration(seconds)}"
        click.echo(plain(f"{directory}: all is as it was written: {what}, {read}"))
    else:
        files, lost = len({problem.file for problem in report.problems}), report.samples_lost
        what = f"{count(len(report.problems), 'problem')} in {count(files, 'file')}"
        click.echo(
            plain(f"{directory}: damaged: {what}; {lost:,} of {count(m.kept, 'sample')} lost in whole or in part")
        )


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar where standard error is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("verifying"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verify", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
