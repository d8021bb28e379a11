"""The user's transforms, and the randomness that belongs to one sample.

What a transform draws depends on (seed, epoch, source index) alone, so that augmentation too is the same for any number
of workers. A transform that takes an argument ``rng`` is given a generator of its own; for one that does not, torch's,
NumPy's and Python's global generators are seeded before each call, and put back afterwards.
"""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from shardcache.errors import SampleError, UsageError
from shardcache.format.permutation import derive

_STREAM = 0x5452414E53  # "TRANS"


class Transform:
    """A callable and whether it takes ``rng``: ``apply(value, key)`` calls it with the randomness of ``key``."""

    def __init__(self, call: Callable[..., Any], name: str) -> None:
        _ = np.random  # NumPy loads it when it is asked for: here, and not in each forked worker
        if not callable(call):
            raise UsageError(f"{name} must be callable, was {type(call).__qualname__}")
        self.call, self.name = call, name
        self.takes_rng = _takes_rng(call)

    def apply(self, value: Any, key: int) -> Any:
        if self.takes_rng:
            return self.call(value, rng=np.random.Generator(np.random.Philox(key=key)))
        seed_global_generators(key)
        return self.call(value)


def _takes_rng(call: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(call).parameters
    except (TypeError, ValueError):
        return False


def sample_key(seed: int, epoch: int, index: int) -> int:
    """The randomness of one sample (or one step) in one epoch."""
    return derive(seed, _STREAM, epoch, index)


def seed_global_generators(key: int) -> None:
    """Seed torch's, NumPy's and Python's generators of this process."""
    torch.default_generator.manual_seed(key & (1 << 63) - 1)
    np.random.seed(key & 0xFFFFFFFF)
    random.seed(key)


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Put the state of the global generators back at the end: the training process draws from them too."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Let the user's own exceptions through, with a note that says which sample it was.

    torch rebuilds an exception in the training process from its type and one string; one that cannot be built so would
    lose its message there, and is raised as a :class:`SampleError` here. So is a StopIteration, which would end the
    epoch.
    """
    try:
        yield
    except Exception as error:
        if not _is_rebuilt_from_text(error):
            raise SampleError(f"{what} raised {type(error).__module__}.{type(error).__qualname__}: {error}") from error
        error.add_note(f"(raised by {what})")
        raise


def _is_rebuilt_from_text(error: Exception) -> bool:
    try:
        rebuilt = type(error)("text")
        return type(rebuilt) is type(error) and "text" in str(rebuilt) and not isinstance(error, StopIteration)
    except Exception:
        return False


def check_picklable(name: str, call: Any) -> None:
    """:class:`UsageError` with file and line where a function cannot be sent to a worker that is not forked."""
    qualname = getattr(call, "__qualname__", "")
    code = getattr(call, "__code__", None)
    if code is not None and ("<lambda>" in qualname or "<locals>" in qualname):
        kind = "a lambda" if "<lambda>" in qualname else f"the local function {qualname!r}"
        raise UsageError(
            f"{name} is {kind} ({code.co_filename}:{code.co_firstlineno}), which cannot be sent to worker processes "
            "that are started by spawn or forkserver: make it a function at the top level of a module"
        )
