"""``shardcache explain``."""

import click

from shardcache.cli.build import parse_arguments
from shardcache.cli.options import debug_option, home_options, json_option, print_json
from shardcache.cli.results import results_only
from shardcache.cli.text import plain


@click.command("explain")
@click.argument("name")
@click.argument("target")
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help="An argument for TARGET. Repeatable.")
@click.option("--version", metavar="TEXT", help="As it is given to get_or_build.")
@home_options
@json_option
@debug_option
def command(
    name: str,
    target: str,
    args: tuple[str, ...],
    version: str | None,
    cache_dir: str | None,
    allow_shared: bool,
    as_json: bool,
) -> None:
    """Say in what a dataset differs from the published caches of NAME.

    TARGET and --arg are what get_or_build is called with. Nothing is built.
    """
    kwargs = parse_arguments(args)
    import shardcache

    with results_only():
        found = shardcache.explain(
            name, target, kwargs=kwargs, version=version, cache_dir=cache_dir, allow_shared=allow_shared
        )
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(plain(f"{name}: there is no published cache of this name"))
    for key, texts in found.items():
        click.echo(plain(f"{name}/{key[:12]}: " + ("the same, it would be used" if not texts else "differs")))
        for text in texts:
            for line in text.splitlines():
                click.echo(f"  {plain(line)}")
