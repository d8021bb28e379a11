"""``shardcache bench``."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from shardcache.cli.options import cache_argument, debug_option, json_option, print_json
from shardcache.cli.text import print_table
from shardcache.wording import size

if TYPE_CHECKING:
    from shardcache.read.cache import Cache


@click.command("bench")
@cache_argument
@click.option("--shuffle", is_flag=True, help="Measure how well batches are mixed, instead of how fast they come.")
@click.option("--label", metavar="COLUMN", help="With --shuffle: the column of labels that batches should mix.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Rows of a batch.")
@click.option("--buffer", metavar="ROWS|BYTES", help="With --shuffle: the shuffle buffer, e.g. 8192 or 64MiB.")
@click.option(
    "-j", "--num-workers", "workers", type=click.IntRange(0), multiple=True, default=(0, 1, 2), show_default=True,
    help="Numbers of worker processes to try.",
)  # fmt: skip
@click.option(
    "-t", "--threads", type=click.IntRange(0), multiple=True, default=(0, 2), show_default=True,
    help="Numbers of decoding threads to try, without worker processes.",
)  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True, help="How long each is tried.")
@json_option
@debug_option
def command(
    directory: str,
    shuffle: bool,
    label: str | None,
    batch_size: int,
    buffer: str | None,
    workers: tuple[int, ...],
    threads: tuple[int, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Say what this cache gives on this machine: samples a second by number of workers and threads, and what to use.

    'of limit' is the share of what one core reaches that does nothing but read and decode the same blocks.

    With --shuffle: how well its batches are mixed in two epochs, against a full shuffle. 'label deviation' is 1 where
    labels are drawn independently, 'displacement' a third where samples come from everywhere, 'kept mates' the share of
    a sample's batch-mates that it meets again in the next epoch.
    """
    import shardcache

    cache = shardcache.open(directory)
    if shuffle:
        found = _quality(cache, label, batch_size, buffer)
    elif label is not None or buffer is not None:
        raise click.UsageError("--label and --buffer go with --shuffle")
    else:
        found = _speeds(cache, batch_size, workers, threads, seconds)
    if as_json:
        print_json(found)
    elif shuffle:
        titles = ("", *(name.replace("_", " ") for name in found["this order"]))
        print_table(titles, [(name, *map(_figure, row.values())) for name, row in found.items()], right=titles[1:])
    else:
        titles = ("workers", "threads", "samples/s", "bytes/s", "of limit")
        print_table(titles, map(_row, found["speeds"]), right=titles)
        best = found["recommended"]
        click.echo(f"recommended: num_workers={best['num_workers']}, threads={best['threads']}")


def _row(speed: dict[str, Any]) -> tuple[str, ...]:
    rate, volume = f"{speed['samples_per_second']:,.0f}", size(speed["bytes_per_second"])
    return str(speed["num_workers"]), str(speed["threads"]), rate, volume, f"{speed['share']:.2f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _quality(cache: "Cache", label: str | None, batch_size: int, buffer: str | None) -> dict[str, Any]:
    import shardcache
    from shardcache.quality import shuffle_quality

    size = int(buffer) if buffer is not None and buffer.isdigit() else buffer
    dataset = shardcache.CachedDataset(
        cache, batch_size=batch_size, shuffle=True, shuffle_buffer=size, collate="list", rank=0, world_size=1
    )
    ours, full = shuffle_quality(dataset, label)
    return {"this order": dataclasses.asdict(ours), "a full shuffle": dataclasses.asdict(full)}


def _speeds(
    cache: "Cache", batch_size: int, workers: tuple[int, ...], threads: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    from shardcache.speed import limit, recommended, throughput

    settings = dict.fromkeys([(number, 0) for number in workers] + [(0, number) for number in threads])
    most = limit(cache, seconds)
    found = [
        throughput(cache, batch_size=batch_size, num_workers=number, threads=each, seconds=seconds, limit=most)
        for number, each in sorted(settings)
    ]
    return {
        "batch_size": batch_size,
        "limit_samples_per_second": most,
        "speeds": [dataclasses.asdict(speed) for speed in found],
        "recommended": dataclasses.asdict(recommended(found)),
    }
