"""``shardcache repair``."""

from typing import TYPE_CHECKING

import click

from shardcache.cli.build import parse_arguments
from shardcache.cli.options import cache_argument, debug_option, json_option, print_json
from shardcache.cli.results import results_only
from shardcache.errors import DamagedError
from shardcache.wording import count, plain

if TYPE_CHECKING:
    from shardcache.integrity.repair import Repair


@click.command("repair")
@cache_argument
@click.argument("target")
@click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument for TARGET: JSON, else a string. Repeatable.",
)
@click.option("--out", type=click.Path(), metavar="DIR2", help="Where a new cache goes.  [default: DIR.repaired]")
@click.option("-j", "--num-workers", type=int, default=0, show_default=True, metavar="N", help="Processes that build.")
@click.option("--no-progress", is_flag=True, help="No progress bar. There is none in a pipe.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    directory: str,
    target: str,
    args: tuple[str, ...],
    out: str | None,
    num_workers: int,
    no_progress: bool,
    as_json: bool,
) -> None:
    """Build the damaged shards of a cache again, from its dataset.

    TARGET and --arg are those that the cache was built with. A shard is put back only when it is the same to the bit;
    where it is not, DIR stays as it is and a new cache is built in DIR2. The exit code is 0 where DIR is sound now,
    and 6 where it is not.
    """
    kwargs = parse_arguments(args)
    import shardcache

    with results_only():
        done = shardcache.repair(
            directory, target, kwargs=kwargs, out=out, num_workers=num_workers, progress=not no_progress
        )
    if as_json:
        print_json(done.as_dict())
    else:
        _print(directory, done)
    ctx.exit(0 if done else DamagedError.exit_code)


def _print(directory: str, done: "Repair") -> None:
    for reason in done.reasons:
        click.echo(plain(f"note: {reason}"))
    restored = f"{count(len(done.restored), 'shard')} built again and put back"
    if done.report:
        text = "all is as it was written, nothing to repair"
    elif done:
        text = f"repaired: {restored}; all is as it was written"
    else:
        text = (
            f"still damaged: {restored}, {len(done.differing)} would not be the same and were not; "
            f"a new cache is in {done.beside}"
        )
    click.echo(plain(f"{directory}: {text}"))
