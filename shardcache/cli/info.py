"""``shardcache info``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from shardcache.cli.options import cache_argument, debug_option, json_option, print_json
from shardcache.cli.text import print_table, skipped
from shardcache.wording import count, plain, ratio, saving, size

if TYPE_CHECKING:
    from shardcache.format.provenance import SkipNote
    from shardcache.read.fields import Field

_TITLES = ("column", "holds", "batch", "bytes", "ratio", "codec", "why")


@click.command("info")
@cache_argument
@click.option(
    "--digest", "only_digest", is_flag=True, help="Print the digest alone: it is the same for the same bytes."
)
@click.option(
    "--skipped", "only_skipped", is_flag=True, help="List the samples that were skipped by the build, and why."
)
@json_option
@debug_option
def command(directory: str, only_digest: bool, only_skipped: bool, as_json: bool) -> None:
    """Say what is inside a cache.

    'batch' is what a batch holds of a column: a tensor, a ragged list (of arrays whose shapes differ, which can be
    padded), or a list.
    """
    import shardcache

    cache = shardcache.open(directory)
    info, fields = cache.info(), list(cache.schema)
    if only_skipped:
        _print_skipped(cache.skipped_samples(), as_json)
    elif only_digest:
        click.echo(info["digest"])
    elif as_json:
        columns = [
            {**column, "dtype": field.dtype, "shape": list(field.shape), "optional": field.optional}
            for column, field in zip(info["columns"], fields, strict=True)
        ]
        print_json({**info, "columns": columns})
    else:
        _print(directory, info, fields)


def _print_skipped(listed: "Sequence[SkipNote]", as_json: bool) -> None:
    if as_json:
        print_json([{"index": one.index, "error": one.error, "message": one.message} for one in listed])
        return
    print_table(("index", "error", "message"), [(str(one.index), one.error, one.message) for one in listed])


def _print(directory: str, info: dict[str, Any], fields: "list[Field]") -> None:
    layout = {"source": "source order", "window": f"shuffled in windows of {info['window']}"}.get(
        info["layout"], "shuffled"
    )
    layout += "" if info["layout"] == "source" else f" (seed {info['seed']})"
    blocks = f"{count(info['blocks'], 'block')} of {count(info['rows_per_block'], 'row')}"
    written = ", ".join(f"{name} {version}" for name, version in info["written_by"].items())
    samples = f"{count(info['samples'], 'sample')}{skipped(info)}"
    for line in (
        f"{directory}: {samples}, {saving(info['raw_bytes'], info['file_bytes'])}, {layout}",
        f"{count(info['shards'], 'shard')}, {blocks}; format {info['format_version']}, {written}; read by {info['io']}",
        f"digest {info['digest']}",
    ):
        click.echo(plain(line))
    if info["skipped"]:
        click.echo(plain(f"'shardcache info {directory} --skipped' lists the samples that the build skipped, and why"))
    if info["provenance"] is not None:
        click.echo(plain(_origin(info["provenance"])))
    click.echo()
    print_table(_TITLES, map(_row, fields), right=("bytes", "ratio"))


def _origin(made: dict[str, Any]) -> str:
    """When and from what, as it was written down beside the cache."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    commit = f" at commit {made['commit'][:12]}" if made["commit"] else ""
    commit += " with changes" if made["is_dirty"] else ""
    when = f"built {made['built']} in {made['seconds']:g} s from {made['factory']}{commit}"
    return f"{when} on {made['machine']}; {versions}"[:1000]


def _row(field: "Field") -> tuple[str, ...]:
    saved = ratio(field.raw_bytes, field.stored_bytes)
    return field.name, str(field), field.batch, size(field.stored_bytes), saved, field.codec, field.why
