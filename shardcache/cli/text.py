"""Values as text for people. A cache may hold any text, so nothing of it reaches a terminal unescaped."""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

_UNITS = ("kB", "MB", "GB", "TB", "PB")
_PIPE_WIDTH = 1000  # nothing is cut or wrapped for a program


def size(number: float) -> str:
    """Bytes for people: ``1234567`` -> ``1.2 MB``."""
    if number < 1000:
        return f"{number:.0f} B"
    power = 1
    while number / 1000**power >= 999.95 and power < len(_UNITS):
        power += 1
    return f"{number / 1000**power:,.1f} {_UNITS[power - 1]}"


def ratio(raw: int, stored: int) -> str:
    """How many times smaller something has become."""
    return f"{raw / stored:.2f}" if stored else "-"


def saving(raw: int, stored: int) -> str:
    """``3.1 MB for 9.4 MB (ratio 3.03)``."""
    return f"{size(stored)} for {size(raw)} (ratio {ratio(raw, stored)})"


def duration(seconds: float) -> str:
    """A time for people: ``83.4`` -> ``1 min 23 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """``1 sample``, ``6,900 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def skipped(info: Mapping[str, Any]) -> str:
    """Behind a number of samples: how many others were skipped; empty where none was."""
    return f" ({info['skipped']:,} skipped)" if info["skipped"] else ""


def plain(text: str) -> str:
    """A text without line breaks and without what could steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """A text of several lines as one."""
    return plain(" ".join(line.strip() for line in text.splitlines() if line.strip()))


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
