"""What all commands have in common: help, errors, exit codes, output that is piped."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import pytest

import shardcache
from shardcache import wording
from shardcache.cli import main
from shardcache.errors import DamagedError, ShardCacheWarning
from tests.cli.conftest import ROOT, Process, Run, error_of

COMMANDS = sorted("bench build explain finish head info ls pin prune repair rm unpin verify".split())

WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(name, path=None, target=None):
        if name in ("torch", "rich", "PIL"):
            raise AssertionError(name + " is imported")

sys.meta_path.insert(0, Refuse)
from shardcache.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_shown_without_importing_torch(arguments: list[str]):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "shardcache" in done.stdout


def test_the_help_lists_the_commands_and_each_command_explains_all_its_options(run: Run):
    assert all(f"  {name} " in run("--help").stdout for name in COMMANDS)
    assert sorted(main.commands) == COMMANDS
    for command in main.commands.values():
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert all(option.help for option in options)
        assert "--debug" in {name for option in options for name in option.opts}


def test_the_version_is_the_packages(run: Run):
    assert run("--version").stdout == f"shardcache {shardcache.__version__}\n"


def test_without_a_command_the_help_goes_to_standard_error(run: Run):
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], r"No such command 'nonsense'.* \('shardcache --help' shows what there is\)"),
        (["--nonsense"], r"No such option.*--nonsense"),
        (["info"], r"Missing argument 'DIR\|NAME'.* \('shardcache info --help' shows what there is\)"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["info", "a", "--nonsense"], r"No such option.*--nonsense"),
        (["head", "a", "-n", "many"], "'many' is not a valid int"),
        (["head", "a", "-n", "0"], "0 is not in the range"),
        (["build", "x:y"], r"build: say --out DIR or --name NAME"),
        (["build", "--out", "x"], r"Missing argument 'TARGET"),
        (["build", "x:y", "--out", "x", "--layout", "random"], "'random' is not one of 'shuffled', 'source'"),
        (["build", "x:y", "--out", "x", "--if-exists", "panic"], "'panic' is not one of"),
        (["build", "x:y", "--out", "x", "--seed", "lucky"], "'lucky' is not a valid int"),
        (["build", "x:y", "--out", "x", "-j", "all"], "'all' is not a valid int"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(run: Run, arguments: list[str], message: str):
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.search(message, error_of(result))
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["info", "head", "verify"])
def test_a_path_without_a_cache_is_one_line_and_exit_code_5(run: Run, tmp_path: Path, command: str):
    (tmp_path / "file").write_text("")
    for path, why in [("nothing", "no such directory"), (".", "it has no manifest.json"), ("file", "manifest.json")]:
        result = run(command, tmp_path / path)
        assert result.exit_code == 5
        assert "not a cache" in error_of(result)
        assert why in error_of(result)
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--debug", "info", "nothing"], ["info", "nothing", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, arguments: list[str]):
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (5, "")
    assert done.stderr.startswith("Traceback")
    assert "CacheNotFoundError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_without_debug_a_process_prints_one_line(process: Process, tmp_path: Path):
    done = process("info", "nothing", cwd=tmp_path)
    assert done.returncode == 5
    assert done.stderr == f"error: {error_of(done)}\n"
    assert str(tmp_path / "nothing") in done.stderr


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a command that does what ``act`` of the test's parameter says."""
    commands = dict(main.commands)
    monkeypatch.setattr(main, "commands", commands)
    return "act"


def add(name: str, act: object) -> None:
    main.add_command(click.Command(name, callback=act))


def test_an_error_that_nobody_expected_is_one_line_that_says_how_to_see_more(run: Run, command: str):
    def act() -> None:
        raise ZeroDivisionError("one\n  two\x1b[31m")

    add(command, act)
    result = run(command)
    assert result.exit_code == 1
    assert error_of(result) == r"ZeroDivisionError: one two\x1b[31m (unexpected; --debug shows where)"
    result = run("--debug", command)
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: ZeroDivisionError: one two\\x1b[31m\n")


def test_every_type_of_error_gives_its_exit_code(run: Run, command: str):
    def act() -> None:
        raise DamagedError("torn")

    add(command, act)
    result = run(command)
    assert (result.exit_code, error_of(result)) == (6, "torn")


def test_ctrl_c_gives_130_and_one_line(run: Run, command: str):
    def act() -> None:
        raise KeyboardInterrupt

    add(command, act)
    result = run(command)
    assert result.exit_code == 130
    assert error_of(result) == "interrupted"


def test_a_warning_of_ours_is_one_line_and_another_keeps_its_place(run: Run, command: str):
    def act() -> None:
        warnings.simplefilter("always")
        warnings.warn("may be\nslow", ShardCacheWarning, stacklevel=1)
        warnings.warn("old", UserWarning, stacklevel=1)

    add(command, act)
    result = run(command)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: may be slow\n")
    assert "test_main.py" in result.stderr
    assert "UserWarning: old" in result.stderr


def test_a_reader_that_has_had_enough_is_no_error(cache: Path):
    script = f'{sys.executable} -m shardcache "$@" | exec 3<&0 0<&-; echo ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", script, "-", "head", str(cache), "-n", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) in [("141\n", ""), ("0\n", "")]


def test_ctrl_c_ends_a_running_build_without_a_traceback(folder: Path):
    (folder / "slow.py").write_text(
        "import time\n"
        "class Slow:\n"
        "    def __len__(self): return 100\n"
        "    def __getitem__(self, index):\n"
        "        open('started', 'w').close()\n"
        "        time.sleep(0.2)\n"
        "        return index\n"
    )
    command = [sys.executable, "-m", "shardcache", "build", "slow.py:Slow", "--out", "out"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores the signal for what it starts in the background.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:
        try:
            for _ in range(600):
                if (folder / "started").exists() or child.poll() is not None:
                    break
                time.sleep(0.1)
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130, stderr
    assert stderr.strip() == "error: interrupted"
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234567, "1.2 MB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (5.4e9, "5.4 GB"),
        (10**12, "1.0 TB"),
        (3 * 10**18, "3,000.0 PB"),
    ],
)
def test_a_size_has_one_unit_and_few_digits(number: float, said: str):
    assert wording.size(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (83.4, "1 min 23 s"), (3600, "1 h 00 min"), (7260, "2 h 01 min")],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str):
    assert wording.duration(seconds) == said


def test_what_could_steer_a_terminal_is_escaped():
    assert wording.plain("a\x1b[31m\r\nü漢\u202e") == "a\\x1b[31m\\r\\nü漢\\u202e"
    assert wording.one_line("a\n\n   b\r\nc\x07") == "a b c\\x07"
