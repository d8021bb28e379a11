"""Workers that end when the training process is gone."""

import multiprocessing
import multiprocessing.connection
import os
import threading

_watching: int | None = None  # the process in which a thread watches


def end_with_parent() -> None:
    """Let this worker process end when the process that it works for is killed.

    torch's workers ask whether their parent lives. Under forkserver that is the fork server, which outlives a training
    process that was killed for as long as it has children: they would wait for each other for ever.
    """
    global _watching
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid == os.getppid() or _watching == os.getpid():
        return
    _watching = os.getpid()
    threading.Thread(target=exit_after, args=(parent.sentinel,), daemon=True, name="shardcache-orphans").start()


def exit_after(sentinel: int) -> None:
    """End this process when the one has ended whose sentinel this is; for a thread that waits for nothing else."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)  # nobody is left to hear of anything
