"""Functions run in processes of their own, all at once, which never outlive the test that started them."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")  # from a process without threads, which has torch already
CONTEXT.set_forkserver_preload(
    ["torch", "torch._dynamo", "accelerate", "shardcache.read.dataset", "tests.training.processes"]
)


def together(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], timeout: float = 60) -> list[Any]:
    """What ``function`` returns for each of the calls, each in a process; a test fails that takes too long."""
    results = [CONTEXT.Pipe(duplex=False) for _ in calls]
    processes = [
        CONTEXT.Process(target=_report, args=(writer, function, arguments))
        for arguments, (_, writer) in zip(calls, results, strict=True)
    ]
    for process in processes:
        process.start()
    for _, writer in results:
        writer.close()
    deadline = time.monotonic() + timeout
    try:
        return [_received(reader, deadline) for reader, _ in results]
    finally:
        for process in processes:
            process.join(max(0.0, min(5.0, deadline - time.monotonic())))
            process.kill()
            process.join()


def _received(reader: Any, deadline: float) -> Any:
    if not reader.poll(max(0.0, deadline - time.monotonic())):
        raise AssertionError("a process hangs: the ranks do not agree on the number of batches")
    try:
        kind, value = reader.recv()
    except EOFError:
        raise AssertionError("a process died") from None
    if kind == "error":
        raise AssertionError(f"a process raised:\n{value}")
    return value


def as_any_other() -> None:
    """Let this process start its own as one does that a user starts: a forked one has its parent's way."""
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)


def _report(writer: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    as_any_other()
    try:
        writer.send(("value", function(*arguments)))
    except BaseException:
        writer.send(("error", traceback.format_exc()))


def job(
    function: Callable[..., Any], world_size: int, rendezvous: Any, *arguments: Any, timeout: float = 60
) -> list[Any]:
    """What each rank of a job returns: ``function(*arguments)`` in so many processes with a gloo process group."""
    calls = [(function, rank, world_size, str(rendezvous), arguments) for rank in range(world_size)]
    return together(_in_process_group, calls, timeout)


def _in_process_group(
    function: Callable[..., Any], rank: int, world_size: int, rendezvous: str, arguments: tuple[Any, ...]
) -> Any:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        return function(*arguments)
    finally:
        torch.distributed.destroy_process_group()
