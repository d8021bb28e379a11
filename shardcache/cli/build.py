"""``shardcache build``."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from shardcache.cli.engines import ENGINES, executor
from shardcache.cli.options import debug_option, home_options, identity_options
from shardcache.cli.results import Events, print_estimate, print_event, results_only
from shardcache.cli.sources import IN_FILE_ORDER, KINDS, make_source
from shardcache.cli.text import skipped
from shardcache.errors import UsageError
from shardcache.format.spec import MANIFEST_NAME
from shardcache.wording import count, duration, one_line, plain, saving

_EXAMPLE = """\b
Examples:
  shardcache build mypkg.data:train_set --arg root=/data --arg size=64 --out caches/train -j 8
  shardcache build --from imagefolder photos --out caches/photos
  shardcache build --from files "data/**/*.wav" --out caches/sounds
  shardcache build --from webdataset "train-{000..146}.tar" --out caches/train
  shardcache build --from parquet "rows/*.parquet" --arg columns='["text"]' --out caches/rows
  shardcache build --from hf saved/train --out caches/train
  shardcache build --from lmdb other.lmdb --out caches/other
  shardcache build --from lines "books/*.txt" --arg lines=100 --out caches/books
  shardcache build mypkg.data:train_set --out caches/train --executor dask --address tcp://10.0.0.1:8786
  shardcache build mypkg.data:train_set --out caches/train --part 3/16
"""


@click.command("build", epilog=_EXAMPLE)
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option("--from", "kind", type=click.Choice(list(KINDS)), help="Build from files: TARGET is a path or a pattern.")
@click.option("--out", type=click.Path(), metavar="DIR", help="The directory to make.")
@click.option("--name", help="Instead of --out: among the caches that experiments share, as get_or_build does.")
@click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument for TARGET: JSON, else a string. Repeatable.",
)
@click.option(
    "-j",
    "--num-workers",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Processes; the result is the same.",
)
@click.option("--sample-timeout", type=float, metavar="SECONDS", help="End a worker that reads one sample for so long.")
@click.option("--max-shards-per-worker", type=int, metavar="N", help="Replace a worker after N shards.")
@click.option("--part", metavar="K/N", help="Build only the K-th of N parts; 'shardcache finish DIR' publishes.")
@click.option(
    "--executor",
    "engine",
    type=click.Choice(list(ENGINES)),
    help="Who builds instead of workers: a dask cluster, threads.",
)
@click.option("--address", metavar="URL", help="Of the scheduler, as tcp://host:8786; for --executor dask.")
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    metavar="CODEC",
    help="auto (default), none, zstd or zstd:LEVEL; COLUMN=CODEC for one column. Repeatable.",
)
@click.option(
    "--layout",
    type=click.Choice(["shuffled", "source", "window"]),
    help="The order in which samples are stored.  [default: shuffled; source for --from parquet and streams]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffled layout and of windows.")
@click.option("--shuffle-window", type=int, metavar="N", help="Samples of a window.  [default: 64 MiB of them]")
@click.option(
    "--block-bytes",
    metavar="SIZE",
    help="Raw bytes of a block, the unit of reading.  [default: 128KiB, less in a small cache]",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="What a sample that cannot be read or stored does: end the build, or be left out.",
)
@click.option(
    "--max-errors",
    type=int,
    metavar="N",
    help="How many samples may be left out.  [default: one in a hundred, at least 16]",
)
@click.option(
    "--if-exists",
    type=click.Choice(["error", "open", "replace"]),
    default="error",
    show_default=True,
    help="What to do where a cache is in DIR already.",
)
@click.option("--dry-run", is_flag=True, help="Say what a build would make and take, and write nothing.")
@click.option("--allow-random", is_flag=True, help="Store one draw of a dataset that is random.")
@click.option("--force", is_flag=True, help="Begin although the disk seems to have too little room.")
@click.option("--no-progress", is_flag=True, help="Say nothing of what to expect and how far the build is.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print events, for scripts: one JSON object a line, the result last."
)
@identity_options
@home_options
@debug_option
def command(
    targets: tuple[str, ...],
    kind: str | None,
    out: str | None,
    name: str | None,
    args: tuple[str, ...],
    num_workers: int,
    sample_timeout: float | None,
    max_shards_per_worker: int | None,
    part: str | None,
    engine: str | None,
    address: str | None,
    codecs: tuple[str, ...],
    layout: str | None,
    seed: int,
    shuffle_window: int | None,
    block_bytes: str | None,
    on_error: str,
    max_errors: int | None,
    if_exists: str,
    dry_run: bool,
    allow_random: bool,
    force: bool,
    no_progress: bool,
    as_json: bool,
    **identity: Any,
) -> None:
    """Build a cache from a dataset: one with __len__ and __getitem__, or one that can only be iterated.

    TARGET is 'package.module:callable' or 'file.py:callable'. What it names makes the dataset, or is one. The current
    folder is importable.

    With --from it is a folder ('imagefolder', 'hf'), a file ('lmdb'), or one or more patterns of files: quoted, they
    may have '**' for any depth and braces. --arg gives what the Python class of that kind takes besides.
    """
    kwargs = parse_arguments(args)
    if kind is None and len(targets) > 1:
        raise UsageError(f"one TARGET is needed, were {len(targets)}: several are for --from")
    options: dict[str, Any] = {"codec": parse_codecs(codecs)}
    if block_bytes is not None:
        options["block_bytes"] = parse_size(block_bytes)
    options |= {
        "num_workers": num_workers,
        "seed": seed,
        "layout": layout or (None if shuffle_window else _layout_of(kind)),
    }
    options |= {"shuffle_window": shuffle_window, "on_error": on_error, "max_errors": max_errors}
    if (out is None) == (name is None) and not dry_run:
        raise UsageError("build: say --out DIR or --name NAME, one of the two")
    if out is not None and any(value not in (None, (), False, "mtime") for value in identity.values()):
        raise UsageError("build: --version, --dep, --data-check, --cache-dir and --allow-shared go with --name")
    import shardcache

    start, cache = time.time(), None
    with results_only() as results, Events(results, shown=as_json) as events:
        given, rest = (targets[0], kwargs) if kind is None else (make_source(kind, targets, kwargs), {})
        if dry_run:
            expected = shardcache.estimate(given, out, kwargs=rest, **options)
        else:
            options |= {"allow_random": allow_random, "force": force}
            options["progress"] = events.say if as_json and not no_progress else not no_progress
            options |= {"sample_timeout": sample_timeout, "max_shards_per_worker": max_shards_per_worker}
            options |= {} if part is None else {"part": _parse_part(part)}
            with executor(engine, address, num_workers) as options["executor"]:
                if name is not None:
                    rebuild = if_exists == "replace"
                    options |= identity
                    cache = shardcache.get_or_build(given, name=name, kwargs=rest, rebuild=rebuild, **options)
                elif out is not None:
                    cache = shardcache.build(given, out, kwargs=rest, if_exists=if_exists, **options)
    if dry_run:
        print_estimate(expected, as_json)
        return
    if cache is None:
        _print_part(str(out), part, time.time() - start, as_json)
        return
    was_there = (cache.path / MANIFEST_NAME).stat().st_mtime < start
    _print(out or str(cache.path), cache.info(), time.time() - start, was_there, as_json)


def _print(out: str, info: dict[str, Any], seconds: float, was_there: bool, as_json: bool) -> None:
    if as_json:
        kept = ("path", "samples", "skipped", "shards", "raw_bytes", "stored_bytes", "file_bytes", "digest")
        values = {**{key: info[key] for key in kept}, "built": not was_there, "seconds": round(seconds, 3)}
        print_event({"event": "done", **values})
        return
    what = "was there already" if was_there else f"built in {duration(seconds)}"
    samples = f"{count(info['samples'], 'sample')}{skipped(info)} in {count(info['shards'], 'shard')}"
    click.echo(plain(f"{out}: {samples}, {saving(info['raw_bytes'], info['file_bytes'])}, {what}"))


def _print_part(out: str, part: str | None, seconds: float, as_json: bool) -> None:
    from shardcache.builder.staging import progress_of

    done, shards = progress_of(Path(out).absolute()) or (0, 0)
    if as_json:
        values = {"path": out, "part": part, "shards_done": done, "shards": shards, "seconds": round(seconds, 3)}
        print_event({"event": "done", **values})
        return
    said = f"{out}: part {part} built in {duration(seconds)}; {done} of {count(shards, 'shard')} are there"
    click.echo(plain(said + (", 'shardcache finish' publishes" if done == shards else "")))


def _parse_part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise UsageError(f"--part must be K/N, as 3/16, was {text!r}")
    return int(number), int(of)


def _layout_of(kind: str | None) -> str | None:
    if kind not in IN_FILE_ORDER:
        return None
    click.echo(f"--layout source: {kind} is slow to read at random (--layout shuffled does it all the same)", err=True)
    return "source"


def parse_arguments(args: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as keyword arguments; what was understood is said on standard error."""
    kwargs: dict[str, Any] = {}
    for text in args:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--arg must be NAME=VALUE, was {text!r}")
        if name in kwargs:
            raise UsageError(f"--arg {name} was given twice")
        try:
            kwargs[name] = json.loads(value)
        except ValueError:
            kwargs[name] = value
        click.echo(one_line(f"--arg {name}: {kwargs[name]!r} ({type(kwargs[name]).__name__})"), err=True)
    return kwargs


def parse_codecs(codecs: Sequence[str]) -> str | dict[str, str]:
    """``--codec`` as ``codec=`` takes it."""
    by_column = {name: codec for name, equals, codec in (text.rpartition("=") for text in codecs) if equals}
    for_all = [text for text in codecs if "=" not in text]
    if len(for_all) > 1 or len(by_column) + len(for_all) < len(codecs):
        raise UsageError(f"--codec may be given once, and once for each column; was {', '.join(codecs)}")
    if by_column and for_all and for_all != ["auto"]:
        raise UsageError(
            f"--codec {for_all[0]} is for all columns: beside --codec COLUMN=CODEC the other columns are 'auto'"
        )
    return by_column or (for_all[0] if for_all else "auto")


def parse_size(text: str) -> int:
    """``--block-bytes`` as a number."""
    from shardcache.read.settings import parse_bytes

    try:
        return parse_bytes(text)
    except UsageError:
        raise UsageError(f"--block-bytes must be a size like '128KiB', was {text!r}") from None
