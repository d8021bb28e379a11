"""Whether a process that does not answer hangs or waits for a processor, and where it stands."""

import faulthandler
import os
import select
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

PATIENCE = 10  # times that a process which has work gets the time again
LOOKS = 20
LOOK_S = 0.05
MAX_STACKS = 4000


class Watch:
    """Of one child and all that it starts: they are a process group."""

    def __enter__(self) -> Self:
        self._stacks = tempfile.TemporaryFile("w+")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stacks.close()

    def begin(self) -> None:
        """In the child."""
        os.setpgid(0, 0)
        faulthandler.register(signal.SIGUSR1, self._stacks, all_threads=True)

    def outlasts(self, pid: int, answers: IO[bytes], seconds: float) -> bool:
        """Whether it answers after all: on a machine that has no time for it, it may take longer than ``seconds``."""
        for _ in range(PATIENCE):
            if not is_at_work(pid):
                break
            if select.select([answers], [], [], seconds)[0]:
                return True
        return bool(select.select([answers], [], [], 0)[0])

    def end(self, pid: int) -> str:
        """Have its processes say where they stand, and end them."""
        for sign in (signal.SIGUSR1, signal.SIGKILL):  # those that know no SIGUSR1 end by it
            os.killpg(pid, sign)
            time.sleep(LOOKS * LOOK_S)
        self._stacks.seek(0)
        stacks = self._stacks.read()
        return f":\n{stacks[:MAX_STACKS]}" if stacks else ""


def is_at_work(group: int) -> bool:
    """Whether a process of a group has something to do, most of the time: it runs, waits for a processor or a disk."""
    busy = 0
    for _ in range(LOOKS):
        busy += any(state in "RD" for state in _states(group))
        time.sleep(LOOK_S)
    return busy > LOOKS // 2


def _states(group: int) -> list[str]:
    """As in the table of processes: R, S, D, Z, ...; nothing where the system has no such table."""
    states = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, leader = process.read_text().rpartition(") ")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(leader) == group:
            states.append(state)
    return states
