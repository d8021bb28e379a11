"""Reading where nothing may be written: by another user, without the permission, on a read-only mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardcache import verify
from shardcache.format import leases
from tests.faults.children import in_children, judge
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import epoch, readable, rows, victim

FAULT = "read-only directory, other user, no write permission"
REQUIRED = "reads, writes nothing"
SHORT, LONG = 4, 4

NOBODY = 65534


def listing(path: Path) -> list[Any]:
    """Everything that a write into a directory would change, and nothing that a read does."""
    found = []
    for file in [path, *sorted(path.rglob("*"))]:
        status = file.lstat()
        content = file.read_bytes() if file.is_file() else None
        found.append((file.name, status.st_ino, status.st_size, status.st_mode, status.st_mtime_ns, content))
    return found


@contextmanager
def as_it_is(path: Path) -> Iterator[None]:
    yield


@contextmanager
def without_write_permission(path: Path) -> Iterator[None]:
    for file in path.iterdir():
        file.chmod(0o444)
    path.chmod(0o555)
    yield


@contextmanager
def by_another_user(path: Path) -> Iterator[None]:
    """For good: a child that has given up its rights does not get them back."""
    with without_write_permission(path):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        yield


@contextmanager
def on_a_read_only_mount(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield
    finally:
        leases.close_all()
        subprocess.run(["umount", "--lazy", path], check=True)


WAYS = (as_it_is, without_write_permission, on_a_read_only_mount, by_another_user)


def attempt(path: Path, way: Any) -> Outcome:
    expected = readable(path)
    before = listing(path)
    with way(path):
        before = listing(path) if way is not as_it_is else before
        for outcome in (judge(lambda: rows(path), expected[0], "?"), judge(lambda: epoch(path), expected[1], "?")):
            if outcome.kind != "right":
                return Outcome(outcome.kind, f"{way.__name__}: {outcome.what}")
        if not verify(path, num_workers=0):
            return Outcome("exception", f"{way.__name__}: verify finds a problem")
        after = listing(path)
    return Outcome("right" if after == before else "written", way.__name__)


def run(_: Asked) -> Figures:
    ways = WAYS if os.geteuid() == 0 else WAYS[:2]
    with victim() as path:
        path.parent.chmod(0o755)
        figures = in_children(lambda number: attempt(path, ways[number]), range(len(ways)))
        path.chmod(0o755)
    if ways != WAYS:
        figures.notes.append("not root: neither another user nor a read-only mount was tried")
    return figures
