"""Which changes a fingerprint notices, and what it says of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardcache.errors import UsageError
from shardcache.registry.explain import differences
from shardcache.registry.fingerprint import Fingerprint, fingerprint
from tests.registry.changes import CHANGES, ROOT, Change, Project, in_readme


def in_a_child(work: Any) -> Any:
    """The result of a call in a forked process, which may import and change what it likes."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            said = json.dumps(work())
        except BaseException as error:
            said = json.dumps(f"{type(error).__name__}: {error}")
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    return json.loads(data)


def print_of(project: Project) -> Fingerprint:
    sys.path[:0] = [str(project.code), str(project.site)]
    import data

    project.python(data)
    factory = project.factory(data)
    options = dict(project.options)
    rest = {name: options.pop(name) for name in ("version", "deps", "data_check") if name in options}
    from shardcache.registry.fingerprint import decisive

    return fingerprint(factory, project.kwargs, options=decisive(options), **rest)


def key_of(project: Project) -> str:
    key = in_a_child(lambda: print_of(project).key)
    assert len(key) == 32, key
    return key


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.what)
def test_a_change_is_noticed_or_not_as_the_readme_says(tmp_path: Path, change: Change) -> None:
    project = Project(tmp_path)
    if "content" in change.what:
        project.options["data_check"] = "content" if "data_check" in change.what else "mtime"
    before = key_of(project)
    assert key_of(project) == before
    change.make(project)
    assert (key_of(project) != before) == change.noticed


def test_the_table_has_more_than_sixty_kinds_and_is_the_readmes() -> None:
    assert len({change.what for change in CHANGES}) == len(CHANGES) >= 60
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == in_readme(readme), "python -m tests.registry.changes writes it"


def test_the_hash_seed_of_python_does_not_matter(tmp_path: Path) -> None:
    Project(tmp_path)
    script = (
        "import sys; sys.path[:0] = ['code', 'site']; import data\n"
        "from shardcache.registry.fingerprint import fingerprint\n"
        "print(fingerprint(data.Data, {'options': {1, 'a', 2.5, (3, 4)}}).key)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


class TestExplained:
    def said(self, tmp_path: Path, make: Any) -> list[str]:
        import msgspec

        project = Project(tmp_path)
        before = in_a_child(lambda: msgspec.to_builtins(print_of(project)))
        make(project)
        after = in_a_child(lambda: msgspec.to_builtins(print_of(project)))
        return differences(msgspec.convert(before, Fingerprint), msgspec.convert(after, Fingerprint))

    def test_a_function_with_what_changed_in_it(self, tmp_path: Path) -> None:
        (text,) = self.said(tmp_path, lambda project: project.edit("inner(x) * 3", "inner(x) * 4", "helpers"))
        assert text.startswith("helpers.scale changed:")
        assert "-    return inner(x) * 3" in text
        assert "+    return inner(x) * 4" in text

    def test_an_argument_with_both_values(self, tmp_path: Path) -> None:
        assert self.said(tmp_path, lambda project: project.kwargs.update(rate=0.2)) == ["argument rate: 0.1 -> 0.2"]

    def test_files_by_number_and_name(self, tmp_path: Path) -> None:
        def make(project: Project) -> None:
            project.touch("a.txt")
            (project.files / "new.txt").write_text("new")

        (text,) = self.said(tmp_path, make)
        assert text == (f"1 file changed under {tmp_path}/files: a.txt; 1 file added under {tmp_path}/files: new.txt")

    def test_a_global_with_both_values(self, tmp_path: Path) -> None:
        (text,) = self.said(tmp_path, lambda project: project.edit("LIMIT = 10", "LIMIT = 11"))
        assert text == "data.Data.clip: LIMIT: 10 -> 11"

    def test_an_option(self, tmp_path: Path) -> None:
        (text,) = self.said(tmp_path, lambda project: project.options.update(layout="source"))
        assert text == "option layout: 'shuffled' -> 'source'"


class TestWhatCannotBeCompared:
    def test_an_object_without_a_state_asks_for_a_version(self) -> None:
        with pytest.raises(UsageError, match=r"argument dataset holds a .*list_iterator.* say version="):
            fingerprint(_identity, {"dataset": iter([1, 2])})
        assert fingerprint(_identity, {"dataset": iter([1, 2])}, version="1").version == "1"

    def test_code_without_a_source_asks_for_a_file_or_a_version(self) -> None:
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec("def make(): return [1]", scope)
        with pytest.raises(UsageError, match=r"__main__.make has no source .* say version="):
            fingerprint(scope["make"])

    def test_arguments_that_the_factory_does_not_take(self) -> None:
        with pytest.raises(UsageError, match=r"_identity cannot be called so: .*'nope'"):
            fingerprint(_identity, {"dataset": [1], "nope": 1})

    def test_a_dependency_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="absent: a file or folder that the dataset depends on is not there"):
            fingerprint(_identity, {"dataset": [1]}, deps=[tmp_path / "absent"])


def _identity(dataset: Any) -> Any:
    return dataset
