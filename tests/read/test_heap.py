"""Memory of batches is used again by the next ones."""

import subprocess
import sys

BATCHES = """
import resource
from shardcache.read import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        batch = [b"x" * 60_000 for _ in range(64)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
heap.keep_room(64 * 60_000)
faults()
print(before, faults())
"""


def test_batches_take_no_new_pages_once_there_is_room() -> None:
    found = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert after < before / 10
