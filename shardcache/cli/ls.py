"""``shardcache ls``."""

import time

import click

from shardcache.cli.options import debug_option, home_options, json_option, print_json
from shardcache.cli.text import print_table
from shardcache.wording import plain, size

_TITLES = ("name", "key", "size", "samples", "made", "last used", "", "dataset", "commit")


@click.command("ls")
@click.argument("name", required=False)
@home_options
@json_option
@debug_option
def command(name: str | None, cache_dir: str | None, allow_shared: bool, as_json: bool) -> None:
    """List the caches that experiments share, the last used first; those of NAME, or all.

    'commit' is that of the code by which a cache was built, '+' where it had changes.
    """
    from shardcache.format import provenance
    from shardcache.registry.keeping import listing
    from shardcache.registry.store import root_of

    kept = listing(root_of(cache_dir, allow_shared=allow_shared), name)
    if as_json:
        print_json([one.as_dict() for one in kept])
        return
    rows = []
    for one in kept:
        entry = one.slot.entry()
        marks = [word for word, is_so in (("pinned", one.is_pinned), ("in use", one.is_in_use)) if is_so]
        marks += [one.state] if one.state != "published" else []
        samples = "-" if one.samples is None else f"{one.samples:,}"
        made, used = (_ago(when) for when in (one.made, one.last_used))
        target = entry.target if entry else "?"
        made_by = provenance.read(one.slot.path)
        commit = (made_by.commit or "-")[:10] + ("+" if made_by.is_dirty else "") if made_by else "-"
        rows.append(
            (
                one.slot.name,
                one.slot.key[:12],
                size(one.file_bytes),
                samples,
                made,
                used,
                ", ".join(marks),
                target,
                commit,
            )
        )
    print_table(_TITLES, rows, right=("size", "samples"))
    click.echo(plain(f"{len(kept)} in all, {size(sum(one.file_bytes for one in kept))}"))


def _ago(when: float | None) -> str:
    if not when:
        return "-"
    seconds = max(0.0, time.time() - when)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
