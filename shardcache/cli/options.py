"""What several commands take."""

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from shardcache.registry.store import Slot

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


def _directory_of(_: click.Context, __: click.Parameter, text: str) -> str:
    """A directory as it is; what is none may be the NAME under which experiments share a cache."""
    if os.path.exists(text) or os.sep in text.partition("/")[2] or text.startswith((".", os.sep)):
        return text
    from shardcache.errors import CacheNotFoundError, UsageError
    from shardcache.registry.store import find, root_of

    try:
        return str(find(root_of(allow_shared=True), text).path)
    except (CacheNotFoundError, UsageError):
        return text  # whoever opens it says that it is not there


cache_argument = click.argument("directory", metavar="DIR|NAME", type=click.Path(), callback=_directory_of)
slot_argument = click.argument("text", metavar="NAME[/KEY]|DIR")


def home_options(command: Any) -> Any:
    """The folder of the caches that experiments share."""
    command = click.option(
        "--cache-dir", metavar="DIR", help="The folder of all caches.  [default: SHARDCACHE_HOME, else the user's]"
    )(command)
    return click.option("--allow-shared", is_flag=True, help="Use a folder that others may write to.")(command)


def identity_options(command: Any) -> Any:
    """What get_or_build takes besides the arguments of the dataset."""
    command = click.option("--version", metavar="TEXT", help="Stands for the code, as for get_or_build.")(command)
    command = click.option(
        "--dep", "deps", multiple=True, metavar="PATH", help="A file or folder that counts, as for get_or_build."
    )(command)
    return click.option(
        "--data-check", type=click.Choice(["mtime", "content"]), default="mtime", help="What tells that a file changed."
    )(command)


def slot_of_text(text: str, cache_dir: str | None, allow_shared: bool) -> "Slot":
    """The one cache that is meant."""
    from shardcache.registry.store import find, root_of

    return find(root_of(cache_dir, allow_shared=allow_shared), text)


def is_debugged(ctx: click.Context) -> bool:
    """Whether ``--debug`` was given, before the command or behind it."""
    return bool(ctx.meta.get(_DEBUG))


def print_json(value: Any) -> None:
    """Plain values on standard output; strict JSON, and ASCII, so that it survives any locale."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
