"""``shardcache info``."""

from typing import TYPE_CHECKING, Any

import click

from shardcache.cli.options import cache_argument, debug_option, json_option, print_json
from shardcache.cli.text import count, plain, print_table, ratio, saving, size

if TYPE_CHECKING:
    from shardcache.read.fields import Field

_TITLES = ("column", "holds", "batch", "bytes", "ratio", "codec", "why")


@click.command("info")
@cache_argument
@click.option(
    "--digest", "only_digest", is_flag=True, help="Print the digest alone: it is the same for the same bytes."
)
@json_option
@debug_option
def command(directory: str, only_digest: bool, as_json: bool) -> None:
    """Say what is inside a cache.

    'batch' is what a batch holds of a column: a tensor, a ragged list (of arrays whose shapes differ, which can be
    padded), or a list.
    """
    import shardcache

    cache = shardcache.open(directory)
    info, fields = cache.info(), list(cache.schema)
    if only_digest:
        click.echo(info["digest"])
    elif as_json:
        columns = [
            {**column, "dtype": field.dtype, "shape": list(field.shape), "optional": field.optional}
            for column, field in zip(info["columns"], fields, strict=True)
        ]
        print_json({**info, "columns": columns})
    else:
        _print(directory, info, fields)


def _print(directory: str, info: dict[str, Any], fields: "list[Field]") -> None:
    layout = f"shuffled (seed {info['seed']})" if info["layout"] == "shuffled" else "source order"
    blocks = f"{count(info['blocks'], 'block')} of {count(info['rows_per_block'], 'row')}"
    written = ", ".join(f"{name} {version}" for name, version in info["written_by"].items())
    for line in (
        f"{directory}: {count(info['samples'], 'sample')}, {saving(info['raw_bytes'], info['file_bytes'])}, {layout}",
        f"{count(info['shards'], 'shard')}, {blocks}; format {info['format_version']}, {written}; read by {info['io']}",
        f"digest {info['digest']}",
    ):
        click.echo(plain(line))
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
