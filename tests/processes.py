"""What other processes do, as a test sees it: also of those that are not its children."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


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


def wait_for(condition: Callable[[], Any]) -> None:
    """Until something has come about; a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
