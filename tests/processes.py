"""What other processes do, as a test sees it: also of those that are not its children."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it goes while it is read
        return False


def alive_after(seconds: float, pids: Iterable[int]) -> list[int]:
    """Those that are still there; waits no longer than it must."""
    left, end = [pid for pid in pids if is_alive(pid)], time.monotonic() + seconds
    while left and time.monotonic() < end:
        time.sleep(0.01)
        left = [pid for pid in left if is_alive(pid)]
    return left


def kill_worker(batches: Any, pid: int, number: int) -> threading.Thread:
    """Have a thread send signal ``number`` to a worker of a DataLoader's iterator, while it does not hold the lock of
    the event by which torch tells workers to stop.

    Workers take it for some microseconds a batch, and it stays taken when its holder dies: ``DataLoader`` may then wait
    for it for ever, with any dataset.
    """

    def kill() -> None:
        with batches._workers_done_event._cond:
            os.kill(pid, number)
            alive_after(10, [pid])

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def wait_for(condition: Callable[[], Any]) -> None:
    """Until something has come about; a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
