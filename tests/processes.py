"""What the system says of processes that are not children of the tests."""

import time
from collections.abc import Iterable
from pathlib import Path


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def alive_after(seconds: float, pids: Iterable[int]) -> list[int]:
    """Those that are still there; waits no longer than it must."""
    left, end = [pid for pid in pids if is_alive(pid)], time.monotonic() + seconds
    while left and time.monotonic() < end:
        time.sleep(0.01)
        left = [pid for pid in left if is_alive(pid)]
    return left
