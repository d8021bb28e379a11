"""What users do to it: the command that a miss prints, folders that several share, what is gone, full or broken."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import shardcache
from shardcache import CacheMissError, ManifestError, ShardCacheWarning, StaleCacheError, StorageError, get_or_build
from shardcache.registry import keeping, store
from tests.faults.full_disk import disk
from tests.registry.changes import ROOT, Project
from tests.registry.test_fingerprint import in_a_child

DATA = '''
import os, pathlib, time

class Lines:
    """Files of a folder, which it lists for itself."""

    def __init__(self, root, tags=(), limit=None, slow=0.0):
        self.files = sorted(pathlib.Path(root).glob("*.txt"))
        self.tags, self.limit, self.slow = tags, limit, slow

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        time.sleep(self.slow)
        return self.files[index].read_text()


class Downloaded(Lines):
    """Makes its files when they are not there."""

    def __init__(self, root):
        pathlib.Path(root).mkdir(exist_ok=True)
        for number in range(3):
            if not (pathlib.Path(root) / f"{number}.txt").exists():
                (pathlib.Path(root) / f"{number}.txt").write_text(f"sample {number}")
        super().__init__(root)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lines_of_a_user.py").write_text(DATA)
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(f"sample {number:02}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDCACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path


def get(name: str = "Lines", **options: Any) -> shardcache.Cache:
    factory = f"lines_of_a_user.py:{name}"
    return get_or_build(factory, **{"name": "lines", "kwargs": {"root": "texts"}, "progress": False, **options})


def python(script: str, folder: Path, **more: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, **more)


class TestTheCommandOfAMiss:
    @pytest.mark.parametrize(
        "options",
        [
            {"kwargs": {"root": "texts", "limit": 1.5, "tags": ["a b", "c"]}, "version": "v 1", "codec": "none"},
            {"kwargs": {"root": Path("texts"), "limit": "5"}, "deps": [Path("texts/00.txt")], "layout": "source"},
        ],
    )
    def test_builds_just_that(self, folder: Path, options: dict[str, Any]) -> None:
        with pytest.raises(CacheMissError) as miss:
            get(on_miss="error", **options)
        words = shlex.split(str(miss.value).partition("To build it: ")[2])
        assert words[:2] == ["shardcache", "build"]
        done = subprocess.run(
            [sys.executable, "-m", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert len(get(on_miss="error", **options)) == 20

    def test_for_a_class_of_a_script_is_that_of_its_file(self, folder: Path) -> None:
        script = (
            "import shardcache\n"
            "try:\n    shardcache.get_or_build(Lines, name='n', kwargs={'root': 'texts'}, on_miss='error')\n"
            "except shardcache.CacheMissError as error:\n    print(str(error).partition('To build it: ')[2])\n"
        )
        (folder / "train.py").write_text(DATA + script)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = {"env": environment, "capture_output": True, "text": True, "check": True, "cwd": folder}
        said = subprocess.run([sys.executable, "train.py"], **run).stdout
        subprocess.run([sys.executable, "-m", *shlex.split(said)], **run)
        assert subprocess.run([sys.executable, "train.py"], **run).stdout == ""

    def test_is_not_there_for_what_no_command_line_can_say(self, folder: Path) -> None:
        with pytest.raises(CacheMissError, match="takes what no command line can say: argument tags of type tuple"):
            get(on_miss="error", kwargs={"root": "texts", "tags": ("a",)})


class TestFiles:
    def test_a_folder_without_a_separator_is_a_path(self, folder: Path) -> None:
        first = get()
        (folder / "texts" / "20.txt").write_text("one more")
        assert len(get()) == 21
        assert len(first) == 20

    def test_files_of_a_list_in_an_attribute_are_watched(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = (
            "import pathlib, shardcache\n"
            "class Data:\n"
            "    def __init__(self):\n"
            "        self.parts = {'all': sorted(map(str, pathlib.Path(chr(116) + 'exts').glob('*.txt')))}\n"
            "    def __len__(self): return len(self.parts['all'])\n"
            "    def __getitem__(self, index): return open(self.parts['all'][index]).read()\n"
            "cache = shardcache.get_or_build(Data, name='n', progress=False, spot_check=0)\n"
            "print(cache[3])\n"
        )
        (folder / "run.py").write_text(script)
        run = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True, "check": True}
        assert subprocess.run([sys.executable, "run.py"], **run).stdout == "sample 03\n"
        (folder / "texts" / "03.txt").write_text("another")
        assert subprocess.run([sys.executable, "run.py"], **run).stdout == "another\n"

    def test_data_that_the_dataset_downloads_is_the_data_of_its_cache(self, folder: Path) -> None:
        options = {"name": "d", "kwargs": {"root": "./fresh"}, "progress": False}
        first = get_or_build("lines_of_a_user.py:Downloaded", **options)
        again = get_or_build("lines_of_a_user.py:Downloaded", **options)
        assert first.path == again.path
        assert len(keeping.listing(folder / "home", "d")) == 1

    def test_a_cache_in_the_folder_of_the_data_is_no_data(self, folder: Path) -> None:
        first = get(cache_dir="texts/caches")
        assert get(cache_dir="texts/caches").path == first.path

    def test_a_folder_that_is_gone_is_a_note(self, folder: Path) -> None:
        first = get(kwargs={"root": "./texts"})
        (folder / "texts").rename(folder / "elsewhere")
        with pytest.warns(ShardCacheWarning, match="the spot check was skipped: SourceError"):
            assert get(kwargs={"root": "./texts"}).path == first.path
        assert get(kwargs={"root": "./elsewhere"}).path == first.path

    def test_the_spot_check_finds_what_no_fingerprint_sees(self, folder: Path) -> None:
        get(spot_check=20)
        for file in (folder / "texts").iterdir():
            status = file.stat()
            file.write_text(file.read_text().upper())
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(StaleCacheError, match=r"sample \d+, .*SAMPLE \d\d' now, the cache holds 'sample \d\d'"):
            get()
        assert get(on_stale="rebuild")[3] == "SAMPLE 03"
        assert get()[3] == "SAMPLE 03"

    def test_it_finds_another_package_of_the_same_version_too(self, tmp_path: Path) -> None:
        project = Project(tmp_path)
        script = (
            "import sys; sys.path[:0] = ['code', 'site']; import tiny, shardcache\n"
            "class Ones:\n    def __len__(self): return 9\n    def __getitem__(self, index): return tiny.one()\n"
            "try:\n    shardcache.get_or_build(Ones, name='ones', cache_dir='home', progress=False)\n"
            "except shardcache.StaleCacheError as error:\n    print(error)\n"
        )
        (tmp_path / "ones.py").write_text(script)
        run = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True, "cwd": tmp_path}
        assert subprocess.run([sys.executable, "ones.py"], check=True, **run).stdout == ""
        project.install("1.0", one=2)
        assert "the dataset gives 2 now, the cache holds 1" in subprocess.run([sys.executable, "ones.py"], **run).stdout


class TestCode:
    def test_that_was_edited_after_its_import_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "lately.py").write_text("def make():\n    return [1]\n")
        script = (
            "import pathlib, time, lately\nfrom shardcache.registry.fingerprint import fingerprint\n"
            "fingerprint(lately.make)\ntime.sleep(0.05)\n"
            "pathlib.Path('lately.py').write_text('# a comment\\ndef make():\\n    return [1]\\n')\n"
            "fingerprint(lately.make)\n"
            "pathlib.Path('lately.py').write_text('def make():\\n    return [2]\\n')\n"
            "fingerprint(lately.make)\n"
        )
        done = python(script, tmp_path)
        assert "lately.make: " in done.stderr
        assert "was edited after it was imported" in done.stderr.splitlines()[-1]

    def test_of_a_notebook_is_compared_as_any_other(self, tmp_path: Path) -> None:
        script = (
            "import linecache, sys\nfrom shardcache.registry.fingerprint import fingerprint\n"
            "def cell(number, text):\n"
            "    name = f'<ipython-input-{number}>'\n"
            "    linecache.cache[name] = (len(text), None, text.splitlines(True), name)\n"
            "    exec(compile(text, name, 'exec'), globals())\n"
            "source = 'class Data:\\n    def __len__(self):\\n        return 4\\n'\n"
            "source += '    def __getitem__(self, i):\\n        return i\\n'\n"
            "keys = []\n"
            "for number, text in enumerate([source, '# x\\n' + source, source.replace('return i', 'return -i')]):\n"
            "    cell(number, text)\n"
            "    keys.append(fingerprint(Data).key)\n"
            "print(keys[0] == keys[1], keys[0] == keys[2])\n"
        )
        assert python(script, tmp_path).stdout == "True False\n"


class TestTheFolder:
    def test_is_shared_by_two_users_as_its_permissions_say(self, folder: Path) -> None:
        if os.getuid() != 0:
            return
        folder.chmod(0o755)
        for parent in folder.parents:
            if parent != Path("/") and parent.stat().st_uid == 0:
                parent.chmod(parent.stat().st_mode | 0o011)
        (folder / "shared").mkdir()
        (folder / "shared").chmod(0o777)
        options = {"cache_dir": str(folder / "shared"), "allow_shared": True, "kwargs": {"root": "./texts"}}
        first = get(**options)
        key = in_a_child(lambda: _as_nobody(lambda: str(get(**options, on_miss="error").path)))
        assert key == str(first.path)
        made = in_a_child(lambda: _as_nobody(lambda: len(get(**options, seed=5))))
        assert made == 20
        assert len(get(**options, seed=5, on_miss="error")) == 20
        slot = store.find(folder / "shared", f"lines/{first.path.name}")
        assert in_a_child(lambda: _as_nobody(lambda: (slot.is_in_use, slot.lock().acquire()))) == [True, True]

    def test_is_read_where_nobody_may_write(self, folder: Path) -> None:
        path = str(get(kwargs={"root": "./texts"}).path)
        if os.getuid() == 0:
            for one in [folder, folder / "home", folder / "home" / "lines", Path(path)]:
                one.chmod(0o755)
        options = {"kwargs": {"root": "./texts"}, "allow_shared": True}
        found = in_a_child(
            lambda: _as_nobody(lambda: [str(get(**options).path), store.find(folder / "home", "lines").is_in_use])
        )
        assert found == [path, False]

    def test_that_is_full_is_an_error_and_the_next_call_builds(self, folder: Path) -> None:
        with disk(folder / "small", "size=1M") as small:
            filler = small / "filler"
            small.chmod(0o700)
            filler.write_bytes(b"x" * ((1 << 20) - (16 << 10)))
            with pytest.raises(StorageError, match=r"the disk is full|cannot be written"):
                get(cache_dir=small)
            filler.unlink()
            assert get(cache_dir=small)[3] == "sample 03"
            assert get(cache_dir=small, on_miss="error")[3] == "sample 03"

    def test_whose_record_is_broken_is_built_anew_and_says_so(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = get().path.with_suffix(".json")
        record.write_text(record.read_text()[:100])
        assert get(progress=True)[3] == "sample 03"
        assert "cannot be read" in capsys.readouterr().err
        assert json.loads(record.read_text())["name"] == "lines"

    def test_whose_manifest_is_damaged_is_refused_and_can_be_built_anew(self, folder: Path) -> None:
        os.truncate(get().path / "manifest.json", 100)
        with pytest.raises(
            ManifestError, match=r"is not the JSON of a manifest: .*; rebuild=True builds the cache anew"
        ):
            get()
        assert get(rebuild=True)[3] == "sample 03"

    def test_of_an_interrupted_build_is_not_pruned_as_unused(self, folder: Path) -> None:
        (folder / "home" / "lines" / f"{'a' * 32}.partial").mkdir(parents=True)
        (folder / "home").chmod(0o700)
        kept = keeping.listing(folder / "home")
        assert [one.state for one in kept] == ["unfinished"]
        assert keeping.prunable(kept, None, 3600) == []


def _as_nobody(work: Any) -> Any:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    return work()


def test_the_lock_of_a_killed_builder_with_workers_is_free_at_once(folder: Path) -> None:
    options = {"kwargs": {"root": "./texts", "slow": 0.2}, "num_workers": 2, "layout": "source"}
    child = os.fork()
    if not child:
        os.setsid()
        get(**options)
        os._exit(0)
    lock = None
    while lock is None or not lock.is_taken():
        found = keeping.listing(folder / "home") if (folder / "home").exists() else []
        lock = found[0].slot.lock() if found else None
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not lock.is_taken()
    assert get(**{**options, "kwargs": {"root": "./texts", "slow": 0.2}}, spot_check=0)[3] == "sample 03"
