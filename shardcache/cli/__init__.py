"""The command line: arguments in, one library call, text out. One file a command.

Standard output carries results and nothing else, so that it can be piped; progress, remarks and errors go to standard
error. An error is one line and the exit code that :mod:`shardcache.errors` gives to its type (2 for what click refuses,
130 after Ctrl-C); ``--debug`` shows the traceback. Nothing here imports torch before a command runs.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import click

from shardcache import __version__
from shardcache.cli import bench, build, explain, finish, head, info, ls, pin, prune, repair, verify
from shardcache.cli.options import debug_option, is_debugged
from shardcache.errors import ShardCacheError, ShardCacheWarning
from shardcache.wording import one_line

_INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended
_PIPE_CLOSED = 141  # and of one whose reader had enough


class _Failed(click.ClickException):
    """An error that is said in one line."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click lets instances have their own


class _CommandLine(click.Group):
    """A group whose errors are one line each."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        extra["standalone_mode"] = False
        with suppress(AttributeError):  # a stream that is not a text file
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
            sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            returned = super().main(args, prog_name or "shardcache", **extra)
            code = returned if isinstance(returned, int) else 0
        except click.ClickException as error:
            code = error.exit_code
            _say_error(_with_hint(error))
        except (click.Abort, KeyboardInterrupt):
            code = _INTERRUPTED
            _say_error("interrupted")
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            _discard_output()
            ctx.exit(_PIPE_CLOSED)
        except Exception as error:
            if is_debugged(ctx):
                traceback.print_exc()
            if isinstance(error, ShardCacheError):
                raise _Failed(str(error), error.exit_code) from error
            hint = "" if is_debugged(ctx) else " (unexpected; --debug shows where)"
            raise _Failed(f"{type(error).__name__}: {error}{hint}", 1) from error

    def _invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it printed has left this process when it is done."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                returned = super().invoke(ctx)
            except click.exceptions.Exit:
                sys.stdout.flush()
                raise
        sys.stdout.flush()
        return returned


def _with_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return error.format_message() + (f" ('{ctx.command_path} --help' shows what there is)" if ctx else "")


def _say_error(text: str) -> None:
    with suppress(BrokenPipeError):
        click.echo(f"{click.style('error:', fg='red', bold=True)} {one_line(text)}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,
) -> None:
    """A warning of ours is for the user, in one line; another one is for who wrote the code that it names."""
    if issubclass(category, ShardCacheWarning):
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {one_line(str(message))}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _discard_output() -> None:
    """Nobody reads on: what is still buffered must not fail again when the interpreter ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    "shardcache",
    cls=_CommandLine,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="shardcache %(version)s")
@debug_option
@click.pass_context
def main(ctx: click.Context) -> None:
    """Materialise a slow PyTorch dataset once; train from the cache."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


main.add_command(build.command)
main.add_command(finish.command)
main.add_command(info.command)
main.add_command(head.command)
main.add_command(verify.command)
main.add_command(repair.command)
main.add_command(bench.command)
main.add_command(ls.command)
main.add_command(explain.command)
main.add_command(pin.pin)
main.add_command(pin.unpin)
main.add_command(prune.prune)
main.add_command(prune.rm)
