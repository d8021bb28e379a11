"""A power cut at each boundary of a real build: what was not flushed is lost, wholly or in part, in any order.

``strace`` records what a build does to the disk. A model of a file system that promises no more than POSIX does replays
it up to a boundary: a write lasts once its file was flushed, a name once its directory was.
"""

import copy
import gc
import random
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.children import in_children, judge
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import Victim, build, readable, small_limits, victim

FAULT = "un-fsynced writes lost at each boundary (from a trace)"
REQUIRED = "old or new, never a mixture"
SHORT, LONG = 20, 1 << 20  # at most: there are as many trials as boundaries, times the ways to lose

CALLS = "open,openat,write,pwrite64,writev,pwritev,ftruncate,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,"
CALLS += "rmdir,fsync,fdatasync,lseek"
WAYS = ("all of it", "data", "names", "some", "some", "some")  # that is lost

TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
DESCRIPTOR = re.compile(r"\((\d+)<((?:\\x[0-9a-f]{2})*)>")


@dataclass
class Node:
    """A file or a directory: what the process sees, and what the disk holds."""

    is_directory: bool
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, "Node"] = field(default_factory=dict)
    kept: bytes = b""
    kept_names: dict[str, "Node"] = field(default_factory=dict)
    writes: list[tuple[int, bytes]] = field(default_factory=list)  # since it was flushed
    changes: list[dict[str, "Node | None"]] = field(default_factory=list)  # each is one to a journal

    def flush(self) -> None:
        self.kept, self.kept_names, self.writes, self.changes = bytes(self.data), dict(self.names), [], []

    def write(self, at: int, data: bytes) -> None:
        self.writes.append((at, data))
        place(self.data, at, data)

    def name(self, names: dict[str, "Node | None"]) -> None:
        self.changes.append(names)
        put(self.names, names)


def place(data: bytearray, at: int, new: bytes) -> None:
    data.extend(bytes(max(0, at + len(new) - len(data))))
    data[at : at + len(new)] = new


def put(names: dict[str, Node], changed: dict[str, Node | None]) -> None:
    for name, node in changed.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def on_disk(path: Path) -> Node:
    """What is there before the trace begins, all of it flushed."""
    node = Node(path.is_dir(), bytearray() if path.is_dir() else bytearray(path.read_bytes()))
    if node.is_directory:
        node.names = {file.name: on_disk(file) for file in path.iterdir()}
    node.flush()
    return node


class Disk:
    """The directory of a build, as the calls of a trace change it."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = str(root), on_disk(root)
        self.positions: dict[int, int] = {}

    def find(self, path: str) -> tuple[Node | None, str, Node | None]:
        """(directory, name, node) of a path; no directory where it lies elsewhere."""
        if path != self.root and not path.startswith(self.root + "/"):
            return None, "", None
        parent, name, node = self.top, "", self.top
        for name in path[len(self.root) :].strip("/").split("/"):
            parent, node = node, node.names.get(name) if node and name else node
        return parent, name, node

    def apply(self, line: str) -> bool:
        """Do what a line of the trace says; whether that changed the model."""
        call = re.match(r"\d+ +(\w+)\(", line)
        if call is None or " = -1 " in line:
            return False
        texts = [bytes.fromhex(text.replace("\\x", "")) for text, _ in TEXT.findall(line)]
        described = DESCRIPTOR.search(line)
        if call[1] == "lseek" and described:
            self.positions[int(described[1])] = int(line.rpartition("= ")[2])
            return False
        if call[1] in ("open", "openat"):
            return self.open(line, texts[0].decode())
        if described and call[1] in ("write", "pwrite64", "writev", "pwritev", "ftruncate", "fsync", "fdatasync"):
            path = bytes.fromhex(described[2].replace("\\x", "")).decode()
            _, _, node = self.find(path)
            return node is not None and self.change(call[1], line, int(described[1]), node, texts)
        return self.rename(call[1], [text.decode() for text in texts], "RENAME_EXCHANGE" in line)

    def open(self, line: str, path: str) -> bool:
        parent, name, node = self.find(path)
        self.positions[int(line.rpartition("= ")[2].partition("<")[0])] = 0
        if parent is None or "O_CREAT" not in line:
            return False
        if node is None:
            parent.name({name: Node(False)})
        elif "O_TRUNC" in line:
            node.data.clear()
        return True

    def change(self, call: str, line: str, fd: int, node: Node, texts: list[bytes]) -> bool:
        if call.endswith("sync"):
            node.flush()
        elif call == "ftruncate":
            del node.data[int(re.findall(r"(\d+)\)", line)[-1]) :]
        else:
            is_placed = call.startswith("p")
            at = int(re.findall(r"(\d+)\) += ", line)[-1]) if is_placed else self.positions.get(fd, 0)
            data = b"".join(texts)
            node.write(at, data)
            self.positions[fd] = self.positions.get(fd, 0) if is_placed else at + len(data)
        return True

    def rename(self, call: str, paths: list[str], is_exchange: bool) -> bool:
        parent, name, node = self.find(paths[0])
        if parent is None:
            return False
        if call.startswith("mkdir"):
            parent.name({name: Node(True)})
        elif call.startswith("rename"):
            other, new, there = self.find(paths[1])
            assert other is not None
            if is_exchange:
                assert other is parent
                parent.name({name: there, new: node})
            else:
                other.name({new: node})
                parent.name({name: None})
        elif node is not None:
            parent.name({name: None})
        return True


def after_a_crash(node: Node, way: str, draw: random.Random, path: Path) -> None:
    """Write down what the disk may hold of a directory."""
    path.mkdir()
    names = dict(node.names if way == "data" else node.kept_names)
    if way == "some":  # of the changes of a directory any number, in their order, as a journal keeps them
        for changed in node.changes[: draw.randint(0, len(node.changes))]:
            put(names, changed)
    for name, child in names.items():
        if child.is_directory:
            after_a_crash(child, way, draw, path / name)
            continue
        data = bytearray(child.data if way == "names" else child.kept)
        for at, new in child.writes if way == "some" else ():
            if draw.random() < 0.5:
                place(data, at, new)
        (path / name).write_bytes(data)


class Crashed:
    def __init__(self, states: list[Disk], old: object, new: object, directory: Path, seed: int) -> None:
        self.states, self.old, self.new, self.directory, self.seed = states, old, new, directory, seed

    def __call__(self, number: int) -> Outcome:
        step, way = divmod(number, len(WAYS))
        root = self.directory / f"crash {number}"
        after_a_crash(self.states[step].top, WAYS[way], random.Random(f"{self.seed} {number}"), root)
        what = f"{WAYS[way]} lost at boundary {step} of {len(self.states)}"
        outcome = Outcome("nothing", what)
        path = root / "cache"
        if path.exists() and any(path.iterdir()):
            old = judge(lambda: readable(path), self.old, "")
            new = judge(lambda: readable(path), self.new, "")
            kind = "old" if old.kind == "right" else "new" if new.kind == "right" else "mixture"
            outcome = Outcome(kind, f"{what}: {new.what}")
        try:
            gc.collect()
            build(Victim(), path, if_exists="replace")
            again = judge(lambda: readable(path), self.new, "")
            if again.kind != "right":
                return Outcome("silent", f"{what}: {outcome.kind}, and built again: {again.what}")
        except Exception as error:
            return Outcome("stuck", f"{what}: {outcome.kind}, and then {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(root)
        return outcome


def traced(root: Path) -> list[Disk]:
    """The disk before each call of a build over the cache that is there, and after the last one."""
    trace = root.with_name("trace")
    command = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", trace]
    disk = Disk(root)
    states = [copy.deepcopy(disk)]
    subprocess.run(
        [*command, sys.executable, "-m", "tests.faults.lost_writes", str(root / "cache")],
        cwd=Path(__file__).parents[2],
        check=True,
    )
    states += [copy.deepcopy(disk) for line in trace.read_text().splitlines() if disk.apply(line)]
    assert contents(disk.top) == contents(on_disk(root)), "the model is not what the build has left"
    return states


def contents(node: Node) -> object:
    return {name: contents(child) for name, child in node.names.items()} if node.is_directory else bytes(node.data)


def run(asked: Asked) -> Figures:
    if not shutil.which("strace"):
        return Figures(skipped="the trace of a build is recorded by strace, which is not here")
    with victim() as path:
        root = path.with_name("root")
        root.mkdir()
        old, new = build(Victim(salt=1), root / "cache").path, readable(path)
        before = readable(old)
        states = traced(root)
        assert len(states) > 20, "a build writes more than that"
        trial = Crashed(states, before, new, path.parent, asked.seed)
        order = asked.order(range(len(states) * len(WAYS)))
        figures = in_children(lambda number: trial(order[number]), asked.within(len(order)))
        figures.notes.append(f"{len(states)} boundaries")
        return figures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with small_limits():
        build(Victim(), Path(sys.argv[1]), if_exists="replace")
