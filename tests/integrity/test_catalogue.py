"""Each way in which a cache can be wrong has its error, and CONTRIBUTING.md says which."""

import re
from pathlib import Path

import pytest

import shardcache
from shardcache.errors import DamagedError, ShardCacheError
from tests.integrity.catalogue import CONTRIBUTING, FAULTS, Fault, with_table


def read(path: Path, io: str) -> None:
    cache = shardcache.open(path, io=io)
    for index in range(len(cache)):
        cache[index]


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_cache_that_is_wrong_is_refused_with_its_error(copied: Path, fault: Fault, io: str):
    fault.damage(copied)
    with pytest.raises(ShardCacheError) as raised:
        read(copied, io)
    assert type(raised.value) is fault.error
    assert re.search(fault.pattern, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


WHILE_READING = [fault for fault in FAULTS if issubclass(fault.error, DamagedError)]


@pytest.mark.parametrize("fault", WHILE_READING[::4], ids=lambda fault: fault.what)
def test_the_error_of_a_worker_arrives_with_its_type_and_its_message(copied: Path, fault: Fault):
    fault.damage(copied)
    with pytest.raises(fault.error) as raised:
        list(shardcache.CachedDataset(copied, batch_size=8, shuffle=True).loader(1))
    assert re.search(fault.pattern, str(raised.value))


def test_the_table_in_contributing_is_this_catalogue():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert text == with_table(text), "python -m tests.integrity.catalogue writes it"
