"""``shardcache prune`` and ``shardcache rm``."""

import click

from shardcache.cli.options import debug_option, home_options, slot_argument, slot_of_text
from shardcache.errors import BuildInProgressError, UsageError
from shardcache.wording import plain, size


@click.command("prune")
@click.option("--max-size", metavar="SIZE", help="Delete the least recently used until the rest is at most this large.")
@click.option("--unused-for", metavar="TIME", help="Delete what was not used for so long, like 30d or 12h.")
@click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")
@home_options
@debug_option
def prune(max_size: str | None, unused_for: str | None, yes: bool, cache_dir: str | None, allow_shared: bool) -> None:
    """Delete caches that experiments share; never one that is pinned or in use."""
    if max_size is None and unused_for is None:
        raise UsageError("prune: say --max-size, --unused-for, or both")
    from shardcache.registry.keeping import listing, parse_duration, prunable, remove
    from shardcache.registry.store import root_of

    kept = listing(root_of(cache_dir, allow_shared=allow_shared))
    limit = None if max_size is None else _parse_size(max_size)
    chosen = prunable(kept, limit, None if unused_for is None else parse_duration(unused_for))
    gone, stayed = remove(chosen) if yes else (chosen, [])
    verb = "deleted" if yes else "would delete"
    for one in gone:
        click.echo(plain(f"{verb} {one.slot.name}/{one.slot.key[:12]}, {size(one.file_bytes)}"))
    for one in stayed:
        click.echo(plain(f"kept {one.slot.name}/{one.slot.key[:12]}: it came into use"))
    left = sum(one.file_bytes for one in kept) - sum(one.file_bytes for one in gone)
    freed, remain = size(sum(one.file_bytes for one in gone)), "remain" if yes else "would remain"
    click.echo(plain(f"{verb} {len(gone)}, {freed}; {size(left)} {remain}"))
    if chosen and not yes:
        click.echo("--yes does it", err=True)


def _parse_size(text: str) -> int:
    from shardcache.read.settings import parse_bytes

    try:
        return parse_bytes(text)
    except UsageError:
        raise UsageError(f"--max-size must be a size like '200GB', was {text!r}") from None


@click.command("rm")
@slot_argument
@home_options
@debug_option
def rm(text: str, cache_dir: str | None, allow_shared: bool) -> None:
    """Delete one cache, which is neither pinned nor in use."""
    slot = slot_of_text(text, cache_dir, allow_shared)
    if slot.is_pinned:
        raise UsageError(f"{text}: is pinned; 'shardcache unpin {text}' first")
    if not slot.remove():
        raise BuildInProgressError(f"{slot.path}: is in use, nothing was deleted")
    click.echo(plain(f"{slot.name}/{slot.key[:12]}: deleted"))
