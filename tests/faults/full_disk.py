"""A disk that is full at any moment of a build, a limit on the size of a file, a disk that is read-only.

What a quota says (EDQUOT) is said by the layer of :mod:`tests.faults.io_errors`, at each call.
"""

import gc
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardcache import StorageError
from shardcache.format import leases
from tests.faults.children import in_children
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import Victim, build, readable, small_limits, victim, workshop

FAULT = "disk full at any moment, files limited, read-only"
REQUIRED = "says so, nothing published, nothing left"
SHORT, LONG = 12, 100

ENOUGH = 8 << 20
PAGE = 4096
GOLDEN = 0.6180339887498949


@contextmanager
def disk(directory: Path, options: str) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=True)
    try:
        yield directory
    finally:
        leases.close_all()
        subprocess.run(["umount", "--lazy", directory], check=True)


def remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", directory], check=True)


class Full:
    """Trial n: a build on a disk of so many pages, into nothing or over a cache that is there.

    Any number of trials after each other have sizes that lie evenly between nothing and all that is needed.
    """

    def __init__(self, directory: Path, needed: int) -> None:
        self.directory, self.needed = directory, needed
        with small_limits():
            self.expected = {}
            for salt in (0, 1):
                path = directory / f"whole {salt}"
                build(Victim(salt=salt), path)
                self.expected[salt] = readable(path)

    def __call__(self, number: int) -> Outcome:
        if number == 0:
            return self.read_only()
        if number % 4 == 3:
            return self.limited(number, PAGE * (1 + int(number * GOLDEN % 1 * (self.needed // PAGE // 3))))
        pages = 2 + int(number * GOLDEN % 1 * (self.needed // PAGE + 4))
        with disk(self.directory / "disk", f"size={ENOUGH}") as where:
            replaces = number % 4 == 2
            if replaces:
                build(Victim(salt=1), where / "cache")
            remount(where, f"size={(pages + self.needed // PAGE * replaces) * PAGE}")
            what = f"{pages} pages{' and a cache that is replaced' * replaces}"
            outcome = self.attempt(where, replaces, what)
            if outcome.kind == "refused":
                remount(where, f"size={ENOUGH}")
                gc.collect()  # a cache that was read and is no more holds what it has opened
                build(Victim(), where / "cache", if_exists="replace")
                if readable(where / "cache") != self.expected[0]:
                    return Outcome("silent", f"{what}: continued to other data")
                if left := [file.name for file in where.iterdir() if file.name != "cache"]:
                    return Outcome("left", f"{what}: {left} after it was continued")
            return outcome

    def attempt(self, where: Path, replaces: bool, what: str) -> Outcome:
        path = where / "cache"
        try:
            build(Victim(), path, if_exists="replace")
        except StorageError as error:
            outcome = Outcome("refused", f"{what}: {error}")
            if "full" not in str(error) and "cannot be written" not in str(error):
                return Outcome("unnamed", outcome.what)
        except BaseException as error:
            return Outcome("exception", f"{what}: {type(error).__name__}: {error}")
        else:
            return Outcome("right" if readable(path) == self.expected[0] else "silent", what)
        if replaces and readable(path) != self.expected[1]:
            return Outcome("lost", f"{what}: the old cache")
        if not replaces and path.exists():
            return Outcome("published", what)
        return self.leftovers(where, outcome)

    def leftovers(self, where: Path, outcome: Outcome) -> Outcome:
        """Nothing, or finished shards that the same build goes on from."""
        partial = where / "cache.partial"
        if partial.exists() and not list(partial.glob("shard-*.json")) and not (partial / "manifest.json").exists():
            return Outcome("left", f"{outcome.what}: {sorted(file.name for file in partial.iterdir())}")
        strangers = [file.name for file in where.iterdir() if file.name not in ("cache", "cache.partial")]
        return Outcome("left", f"{outcome.what}: {strangers}") if strangers else outcome

    def limited(self, number: int, size: int) -> Outcome:
        """No file may be longer, as under a quota."""
        where = self.directory / f"limited {number}"
        where.mkdir()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            return self.attempt(where, False, f"files of at most {size} bytes")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def read_only(self) -> Outcome:
        with disk(self.directory / "disk", f"size={ENOUGH}") as where:
            remount(where, "ro")
            return self.attempt(where, False, "read-only")


def run(asked: Asked) -> Figures:
    if os.geteuid() or not Path("/proc/mounts").exists():
        return Figures(skipped="a disk of a given size is a tmpfs, and mounting one needs root on Linux")
    with victim() as path:
        needed = sum(-(-file.stat().st_size // PAGE) * PAGE for file in path.iterdir())
    with workshop() as directory, small_limits():
        return in_children(Full(directory, needed), asked.numbers)
