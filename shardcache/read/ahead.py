"""Threads that decode ahead of the consumer, in the process that trains or in a worker.

Each thread has a pipeline of its own and is given whole lanes, as a worker process is: no two decode the same block,
each has its part of the shuffle buffer, and the order of the steps stays what it is. What a thread makes is a draft;
transforms and ``collate_fn`` run in the consumer's thread, since nobody promised that they may run in two at once.

Bounded: the steps are given out in rounds, of which ``ROUNDS`` are under way while one is delivered.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

from shardcache.read.pipeline import Draft, Pipeline

ROUNDS = 2

_Drafts = dict[int, "list[Future[Draft]]"]


def run_ahead(
    pipelines: Sequence[Pipeline], owner: Callable[[int], int], steps: Iterable[int], round_steps: int
) -> Iterator[Any]:
    """What is yielded for ``steps``, in their order; pipeline ``owner(step)`` drafts a step, in a thread of its own.

    A round has ``round_steps`` steps. When the iteration ends, is left or fails, its threads have ended too.
    """
    threads = [ThreadPoolExecutor(1, "shardcache-decode") for _ in pipelines]
    steps, under_way = iter(steps), deque[tuple[list[int], _Drafts]]()

    def give_out(of_round: list[int]) -> _Drafts:
        by_owner: dict[int, list[int]] = {}
        for step in of_round:
            by_owner.setdefault(owner(step), []).append(step)
        return {
            at: [threads[at].submit(pipelines[at].draft, some) for some in pipelines[at].portions(part)]
            for at, part in by_owner.items()
        }

    def deliver(of_round: list[int], drafts: _Drafts) -> Iterator[Any]:
        items = {
            at: chain.from_iterable(pipelines[at].finish(draft.result()) for draft in of_owner)
            for at, of_owner in drafts.items()
        }
        for step in of_round:
            yield from islice(items[owner(step)], 1)

    try:
        for of_round in iter(lambda: list(islice(steps, round_steps)), []):
            under_way.append((of_round, give_out(of_round)))
            if len(under_way) > ROUNDS:
                yield from deliver(*under_way.popleft())
        while under_way:
            yield from deliver(*under_way.popleft())
    finally:
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.shutdown()
