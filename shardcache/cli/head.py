"""``shardcache head``."""

import click

from shardcache.cli.options import cache_argument, debug_option, json_option, print_json
from shardcache.errors import UsageError


@click.command("head")
@cache_argument
@click.option("-n", "number", type=click.IntRange(min=1), default=3, show_default=True, help="How many samples.")
@click.option(
    "--index", "indices", type=int, multiple=True, metavar="I", help="This sample (-1 is the last). Repeatable."
)
@json_option
@debug_option
def command(directory: str, number: int, indices: tuple[int, ...], as_json: bool) -> None:
    """Show samples of a cache.

    The first ones of the dataset, in its own order, or those that are asked for. Of arrays, images and long texts it
    shows what they are recognised by.
    """
    import shardcache
    from shardcache.cli import samples

    cache = shardcache.open(directory)
    wanted = list(indices) or list(range(min(number, len(cache))))
    for index in wanted:
        if not -len(cache) <= index < len(cache):
            raise UsageError(f"--index {index} is out of range: the cache has {len(cache):,} samples")
    values = zip((index % len(cache) for index in wanted), cache[wanted], strict=True)
    if as_json:
        print_json([{"index": index, "sample": samples.as_json(sample)} for index, sample in values])
        return
    for index, sample in values:
        click.echo(click.style(f"sample {index}", bold=True))
        for line in samples.lines(sample):
            click.echo(line)
