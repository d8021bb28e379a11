"""What several commands take."""

import json
from typing import Any

import click

_DEBUG = "shardcache.debug"


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True  # shared by a command and the group above it


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
cache_argument = click.argument("directory", metavar="DIR", type=click.Path())


def is_debugged(ctx: click.Context) -> bool:
    """Whether ``--debug`` was given, before the command or behind it."""
    return bool(ctx.meta.get(_DEBUG))


def print_json(value: Any) -> None:
    """Plain values on standard output; strict JSON, and ASCII, so that it survives any locale."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
