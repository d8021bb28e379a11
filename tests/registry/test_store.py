"""What lies beside the caches of a folder that others may write to."""

import os
from pathlib import Path

import pytest

from shardcache.read.hold import REPLACED
from shardcache.registry.keeping import listing, prunable, remove
from shardcache.registry.store import Slot


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    (tmp_path / "train").mkdir()
    return Slot(tmp_path / "train", "0" * 32)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"name":"\xff"}', b'{"fingerprint":' + b'{"a":' * 50_000, 1 << 40],
    ids=lambda data: str(data)[:20],
)
def test_an_entry_that_is_none_counts_as_absent(slot: Slot, data: bytes | int):
    slot.beside("json").write_bytes(data if isinstance(data, bytes) else b"")
    if isinstance(data, int):
        os.truncate(slot.beside("json"), data)
    assert slot.entry() is None


def test_an_entry_that_is_no_file_is_not_waited_for(slot: Slot):
    os.mkfifo(slot.beside("json"))
    assert slot.entry() is None
    slot.beside("json").unlink()
    slot.beside("json").symlink_to("/dev/zero")
    assert slot.entry() is None


@pytest.mark.parametrize("rest", [f"{REPLACED}0123abcd", ".partial", ""])
def test_the_empty_rest_of_what_could_not_be_deleted_wholly_goes_when_one_prunes_to_a_size(slot: Slot, rest: str):
    slot.path.with_name(f"{slot.key}{rest}").mkdir()
    kept = listing(slot.folder.parent)
    assert [one.file_bytes for one in kept] == [0]
    chosen = prunable(kept, 1 << 40, None)  # though there is room
    assert remove(chosen) == (kept, [])
    assert listing(slot.folder.parent) == []
    assert [file.suffix for file in slot.folder.iterdir()] in ([], [".lock"])
