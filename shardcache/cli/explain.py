"""``shardcache explain``."""

from typing import Any

import click

from shardcache.cli.build import parse_arguments, parse_codecs, parse_size
from shardcache.cli.options import debug_option, home_options, identity_options, json_option, print_json
from shardcache.cli.results import results_only
from shardcache.wording import plain


@click.command("explain")
@click.argument("name", metavar="NAME[/KEY]|DIR")
@click.argument("target")
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help="An argument for TARGET. Repeatable.")
@click.option(
    "--layout", type=click.Choice(["shuffled", "source"]), default="shuffled", show_default=True, help="As for build."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffled layout.")
@click.option("--codec", "codecs", multiple=True, metavar="CODEC", help="As for build. Repeatable.")
@click.option("--block-bytes", metavar="SIZE", help="As for build.")
@identity_options
@home_options
@json_option
@debug_option
def command(
    name: str,
    target: str,
    args: tuple[str, ...],
    codecs: tuple[str, ...],
    block_bytes: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say in what a dataset differs from the published caches of NAME, or from the one in DIR.

    TARGET and the options are what get_or_build is called with. Nothing is built.
    """
    kwargs = parse_arguments(args)
    if block_bytes is not None:
        options["block_bytes"] = parse_size(block_bytes)
    import shardcache

    with results_only():
        found = shardcache.explain(name, target, kwargs=kwargs, codec=parse_codecs(codecs), **options)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(plain(f"{name}: there is no published cache of this name"))
    for key, texts in found.items():
        shown = f"{name.rstrip('/') if '/' in name else f'{name}/{key[:12]}'}"
        click.echo(plain(f"{shown}: " + ("the same, it would be used" if not texts else "differs")))
        for text in texts:
            for line in text.splitlines():
                click.echo(f"  {plain(line)}")
