"""Files truncated, grown, empty, or replaced by what is no file of this cache."""

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shardcache import verify
from shardcache.format import spec
from tests.faults.children import in_children, judge
from tests.faults.figures import Asked, Figures, Outcome
from tests.faults.victims import Victim, build, epoch, readable, rows, victim

FAULT = "truncated, grown, empty, a directory, fifo, link, ..."
REQUIRED = "refused"
SHORT, LONG = 80, 2_000

HANG_S = 10.0  # a named pipe waits for its writer

Replacement = Callable[[random.Random, Path, Path], None]


def truncated(draw: random.Random, path: Path, _: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, draw.choice([draw.randrange(size), size - 1, size - size % 4096 - 4096, 4096, 1]) % size)


def grown(draw: random.Random, path: Path, _: Path) -> None:
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.choice([1, 16, 4096, 10_000])))


def grown_by_a_hole(draw: random.Random, path: Path, _: Path) -> None:
    os.truncate(path, path.stat().st_size + draw.choice([1, 4096, 1 << 33]))


def empty(_: random.Random, path: Path, __: Path) -> None:
    os.truncate(path, 0)


def removed(_: random.Random, path: Path, __: Path) -> None:
    path.unlink()


def a_directory(draw: random.Random, path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()
    if draw.random() < 0.5:
        (path / "data.mdb").write_bytes(b"LMDB's own name")


def a_fifo(_: random.Random, path: Path, __: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(_: random.Random, path: Path, __: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def a_link(_: random.Random, path: Path, __: Path) -> None:
    """To the very file that was here: even what is right is not followed."""
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


def a_broken_link(_: random.Random, path: Path, __: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def a_link_to_itself(_: random.Random, path: Path, __: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_link_to_a_device(draw: random.Random, path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to(draw.choice(["/dev/zero", "/dev/tty", "/dev/random"]))


def a_file_of_another_cache(_: random.Random, path: Path, other: Path) -> None:
    shutil.copyfile(other / path.name, path)


def another_shard(draw: random.Random, path: Path, _: Path) -> None:
    """Of the same cache."""
    shards = [file for file in path.parent.glob("shard-*") if file != path]
    shutil.copyfile(draw.choice(shards), path)


def something_else(draw: random.Random, path: Path, _: Path) -> None:
    """Of the right size."""
    size = path.stat().st_size
    path.write_bytes(draw.choice([bytes(size), draw.randbytes(size), b"{" * size]))


REPLACEMENTS: tuple[Replacement, ...] = (
    truncated,
    grown,
    grown_by_a_hole,
    empty,
    removed,
    a_directory,
    a_fifo,
    a_socket,
    a_link,
    a_broken_link,
    a_link_to_itself,
    a_link_to_a_device,
    a_file_of_another_cache,
    another_shard,
    something_else,
)


@contextmanager
def put_back(path: Path) -> Iterator[None]:
    """The directory as it was, whatever happens to the files in it."""
    whole = {file: file.read_bytes() for file in path.iterdir()}
    try:
        yield
    finally:
        for file in list(path.iterdir()):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink()
        for file, data in whole.items():
            file.write_bytes(data)


class Replaced:
    def __init__(self, path: Path, other: Path, seed: int) -> None:
        self.path, self.other, self.seed = path, other, seed
        self.expected = readable(path)
        self.names = sorted(file.name for file in path.iterdir() if file.name != spec.PROVENANCE_NAME)

    def __call__(self, number: int) -> Outcome:
        draw = random.Random(f"{self.seed} {number}")
        replacement = REPLACEMENTS[number % len(REPLACEMENTS)]
        name = draw.choice(self.names)
        if name == spec.MANIFEST_NAME and replacement in (a_file_of_another_cache, another_shard):
            name = self.names[-1]  # the manifest of another cache belongs to the next row of the table
        with put_back(self.path):
            replacement(draw, self.path / name, self.other)
            outcome = self.read(name)
        kind = "silent" if outcome.kind == "right" else outcome.kind  # that it must be refused is the promise
        return Outcome(kind, f"{name} {replacement.__name__}: {outcome.what}")

    def read(self, name: str) -> Outcome:
        place = str(self.path) if name == spec.MANIFEST_NAME else name.removesuffix(".lmdb").replace("-", " ")
        outcomes = [judge(lambda: rows(self.path), self.expected[0], place)]
        outcomes += [judge(lambda: epoch(self.path), self.expected[1], place)]
        if name != spec.MANIFEST_NAME:
            outcomes += [Outcome("silent" if verify(self.path, num_workers=0) else "refused", "by verify")]
        return next((outcome for outcome in outcomes if outcome.kind != "refused"), outcomes[0])


def run(asked: Asked) -> Figures:
    with victim() as path:
        other = path.with_name("other")
        build(Victim(salt=1), other)
        trial = Replaced(path, other, asked.seed)
        return in_children(trial, asked.numbers, hang_s=HANG_S, prepare=lambda: readable(path))
