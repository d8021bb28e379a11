"""Tables on standard output, and what goes into them."""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from shardcache.wording import plain

_PIPE_WIDTH = 1000  # nothing is cut or wrapped for a program


def skipped(info: Mapping[str, Any]) -> str:
    """Behind a number of samples: how many others were skipped; empty where none was."""
    return f" ({info['skipped']:,} skipped)" if info["skipped"] else ""


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on standard output, the columns in ``right`` aligned there; each row is one line.

    In a terminal that is too narrow the last column gives way; in a pipe nothing does.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        is_last = title == titles[-1]
        table.add_column(title, justify="right" if title in right else "left", no_wrap=not is_last, overflow="ellipsis")
    for row in rows:
        # Text, since a name may look like rich's markup.
        table.add_row(*(Text(plain(cell), no_wrap=True, overflow="ellipsis") for cell in row))
    console = Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
