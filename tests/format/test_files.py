"""Small files in a directory that somebody else may write to."""

import os
import re
import socket
from pathlib import Path

import pytest

from shardcache.format.files import NotAFileError, read_regular, write_whole


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"x")
    path.symlink_to("elsewhere")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, listening, link, device, Path.mkdir])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(tmp_path: Path, make):
    make(tmp_path / "file")
    with pytest.raises(OSError, match=r"must be a regular file|No such device|directory"):
        read_regular(tmp_path / "file", 100)


def test_a_file_is_read_up_to_its_limit_and_a_larger_one_not_at_all(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_regular(tmp_path / "file", 100) == b"x" * 100
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(NotAFileError, match=re.escape("file must have at most 100 bytes, has 1099511627776")):
        read_regular(tmp_path / "file", 100)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 100)


def test_writing_follows_no_link_neither_at_the_name_nor_beside_it(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    for name in ("file", "file.new"):
        (tmp_path / name).symlink_to(precious)
    write_whole(tmp_path / "file", b"new")
    assert precious.read_bytes() == b"precious"
    assert read_regular(tmp_path / "file", 3) == b"new"
    assert not (tmp_path / "file.new").is_symlink()
