"""The commands for caches that experiments share: build --name, ls, explain, pin, unpin, prune, rm."""

import json
from pathlib import Path

import pytest

import shardcache
from tests.cli.conftest import Run, error_of

DATA = """
class Squares:
    def __init__(self, size=20):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index, index * index
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What to build, and a folder of its own for all caches."""
    (tmp_path / "squares_of_a_test.py").write_text(DATA)
    monkeypatch.setenv("SHARDCACHE_HOME", str(tmp_path / "home"))
    return f"{tmp_path / 'squares_of_a_test.py'}:Squares"


def keys(run: Run, *arguments: str) -> list[str]:
    return [one["key"] for one in json.loads(run("ls", "--json", *arguments).stdout)]


def test_what_is_built_by_name_is_found_by_name(run: Run, target: str):
    assert run("build", target, "--name", "squares").exit_code == 0
    again = run("build", target, "--name", "squares")
    assert "was there already" in again.stdout
    assert "20 samples" in run("info", "squares").stdout
    assert run("verify", "squares").exit_code == 0
    assert len(keys(run)) == 1


def test_ls_shows_what_there_is(run: Run, target: str):
    run("build", target, "--name", "squares")
    lines = run("ls").stdout.splitlines()
    assert lines[1].split()[0] == "squares"
    assert "Squares" in lines[1]
    assert lines[-1].startswith("1 in all, ")
    assert keys(run, "other") == []


def test_explain_says_what_differs(run: Run, target: str):
    run("build", target, "--name", "squares")
    (key,) = keys(run)
    assert run("explain", "squares", target).stdout == f"squares/{key[:12]}: the same, it would be used\n"
    differs = run("explain", "squares", target, "--arg", "size=21").stdout
    assert differs == f"squares/{key[:12]}: differs\n  argument size: 20 -> 21\n"
    assert json.loads(run("explain", "squares", target, "--json").stdout) == {key: []}
    assert run("explain", "nope", target).stdout == "nope: there is no published cache of this name\n"


def test_prune_says_what_it_would_do_and_does_it_when_told_to(run: Run, target: str):
    for size in ("20", "21"):
        run("build", target, "--arg", f"size={size}", "--name", "squares")
    newer, older = keys(run)
    assert f"would delete squares/{older[:12]}" in run("prune", "--max-size", "20KB").stdout
    assert keys(run) == [newer, older]
    assert f"deleted squares/{older[:12]}" in run("prune", "--max-size", "20KB", "--yes").stdout
    assert keys(run) == [newer]


@pytest.mark.parametrize(("change", "state"), [((b'"version":1', b'"version":9'), "newer"), ((b"{", b""), "damaged")])
def test_what_cannot_be_opened_is_shown_with_its_size_and_stays_where_there_is_room(
    run: Run, target: str, change: tuple[bytes, bytes], state: str
):
    run("build", target, "--name", "squares")
    (one,) = json.loads(run("ls", "--json").stdout)
    manifest = Path(one["path"], "manifest.json")
    manifest.write_bytes(manifest.read_bytes().replace(*change, 1))
    (found,) = json.loads(run("ls", "--json").stdout)
    assert found["state"] == state
    assert found["file_bytes"] > 10_000
    assert state in run("ls").stdout
    assert "deleted 0" in run("prune", "--max-size", "1GB", "--yes").stdout
    assert "deleted 1" in run("prune", "--max-size", "1KB", "--yes").stdout
    assert keys(run) == []


def test_what_is_pinned_or_open_stays(run: Run, target: str):
    for size in ("20", "21"):
        run("build", target, "--arg", f"size={size}", "--name", "squares")
    newer, older = keys(run)
    assert run("pin", f"squares/{newer[:8]}").stdout == f"squares/{newer[:12]}: pinned\n"
    assert "pinned" in run("ls").stdout
    cache = shardcache.open(json.loads(run("ls", "--json").stdout)[1]["path"])
    assert "in use" in run("ls").stdout
    assert "deleted 0" in run("prune", "--unused-for", "0s", "--yes").stdout
    assert "is pinned" in error_of(run("rm", f"squares/{newer}"))
    assert "is in use" in error_of(run("rm", f"squares/{older}"))
    del cache
    run("unpin", f"squares/{newer}")
    assert "deleted 2" in run("prune", "--unused-for", "0s", "--yes").stdout
    assert keys(run) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "say --max-size, --unused-for, or both"),
        (["prune", "--max-size", "big"], "--max-size must be a size like '200GB', was 'big'"),
        (["prune", "--unused-for", "long"], "a time must be like '30d', '12h' or '2w', was 'long'"),
        (["rm", "nope"], "nope: no cache of this name in"),
        (["pin", "nope/abc"], "nope/abc: no cache of this name in"),
        (["build", "x:y", "--name", "n", "--out", "d"], "say --out DIR or --name NAME, one of the two"),
    ],
)
def test_what_makes_no_sense_is_one_line(run: Run, target: str, arguments: list[str], message: str):
    result = run(*arguments)
    assert result.exit_code in (2, 5)
    assert message in error_of(result)
