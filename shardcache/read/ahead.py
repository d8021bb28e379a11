"""Threads that decode ahead of the consumer, in the process that trains or in a worker.

Each thread has a pipeline of its own and is given whole lanes, as a worker process is: no two decode the same block,
each has its part of the shuffle buffer, and the order of the steps stays what it is. What a thread makes is a draft;
transforms and ``collate_fn`` run in the consumer's thread, since nobody promised that they may run in two at once.

Bounded: the steps are given out in rounds, of which ``ROUNDS`` are under way while one is delivered. A thread's part of
a round comes back as one: to hand something from thread to thread takes as long as to read a small batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from shardcache.read.pipeline import Draft, Pipeline

ROUNDS = 2

_Drafts = tuple[list[Draft], Exception | None]  # what came before the error, where there was one


def run_ahead(
    pipelines: Sequence[Pipeline], owner: Callable[[int], int], steps: Iterable[int], round_steps: int
) -> Iterator[Any]:
    """What is yielded for ``steps``, in their order; pipeline ``owner(step)`` drafts a step, in a thread of its own.

    A round has ``round_steps`` steps. When the iteration ends, is left or fails, its threads have ended too.
    """
    threads = [ThreadPoolExecutor(1, "shardcache-decode") for _ in pipelines]
    steps, under_way = iter(steps), deque[tuple[list[int], dict[int, Future[_Drafts]]]]()

    def give_out(of_round: list[int]) -> dict[int, Future[_Drafts]]:
        by_owner: dict[int, list[int]] = {}
        for step in of_round:
            by_owner.setdefault(owner(step), []).append(step)
        return {at: threads[at].submit(_draft, pipelines[at], steps) for at, steps in by_owner.items()}

    def deliver(of_round: list[int], parts: dict[int, Future[_Drafts]]) -> Iterator[Any]:
        items = {at: _finished(pipelines[at], part) for at, part in parts.items()}
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


def _draft(pipeline: Pipeline, steps: list[int]) -> _Drafts:
    """The drafts of some steps of one thread, up to the first that fails."""
    drafts: list[Draft] = []
    try:
        for some in pipeline.portions(steps):
            drafts.append(pipeline.draft(*some))  # noqa: PERF401 - what came before an error is kept
    except Exception as error:  # raised where its batch would be
        return drafts, error
    return drafts, None


def _finished(pipeline: Pipeline, part: Future[_Drafts]) -> Iterator[Any]:
    drafts, error = part.result()
    for draft in drafts:
        yield from pipeline.finish(draft)
    if error is not None:
        raise error
