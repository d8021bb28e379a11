"""``shardcache finish``."""

import click

from shardcache.cli.options import debug_option, json_option, print_json
from shardcache.wording import count, plain, saving


@click.command("finish")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option(
    "--if-exists",
    type=click.Choice(["error", "open", "replace"]),
    default="error",
    show_default=True,
    help="What to do where a cache is in DIR already, beside the parts of a new one.",
)
@json_option
@debug_option
def command(directory: str, if_exists: str, as_json: bool) -> None:
    """Publish a cache whose parts are built.

    Says which parts are missing, if any; what 'shardcache build --part K/N --out DIR' built is checked first.
    """
    import shardcache

    info = shardcache.finish(directory, if_exists=if_exists).info()
    if as_json:
        print_json({key: info[key] for key in ("path", "samples", "shards", "raw_bytes", "file_bytes", "digest")})
        return
    samples = f"{count(info['samples'], 'sample')} in {count(info['shards'], 'shard')}"
    click.echo(plain(f"{directory}: {samples}, {saving(info['raw_bytes'], info['file_bytes'])}"))
