"""``shardcache pin`` and ``shardcache unpin``."""

import click

from shardcache.cli.options import debug_option, home_options, slot_argument, slot_of_text
from shardcache.wording import plain


@click.command("pin")
@slot_argument
@home_options
@debug_option
def pin(text: str, cache_dir: str | None, allow_shared: bool) -> None:
    """Keep a cache from being pruned."""
    slot = slot_of_text(text, cache_dir, allow_shared)
    slot.beside("pin").touch()
    click.echo(plain(f"{slot.name}/{slot.key[:12]}: pinned"))


@click.command("unpin")
@slot_argument
@home_options
@debug_option
def unpin(text: str, cache_dir: str | None, allow_shared: bool) -> None:
    """Let a cache be pruned again."""
    slot = slot_of_text(text, cache_dir, allow_shared)
    slot.beside("pin").unlink(missing_ok=True)
    click.echo(plain(f"{slot.name}/{slot.key[:12]}: not pinned"))
