"""Values as text that is the same for equal values in every process: arguments, constants, what closures hold."""

import enum
import functools
import hashlib
import logging
import re
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from shardcache.errors import UsageError

_MAX_DEPTH = 20
_MAX_SHOWN = 200  # of bytes and long text: the rest enters as a digest
_SCALARS = (bool, int, float, complex, str, bytes, type(None), type(...))

# What says nothing about data: a logger, a lock.
_ROUTINES = "builtin_function_or_method method method_descriptor ufunc wrapper_descriptor".split()
_OPAQUE = (logging.Logger, type(threading.Lock()), type(threading.RLock()), threading.local)


class CannotTell(UsageError):
    """A value whose meaning cannot be written down; the message says which one and what to do."""


class Literals:
    """Writes values down. ``reach`` is given every function and class that is met, and returns its name.

    ``path`` is given every path among the values, and returns what stands for it.
    """

    def __init__(self, reach: Callable[[Any], str], path: Callable[[str], str]) -> None:
        self._reach, self._path = reach, path
        self._above: list[int] = []  # ids of the containers around: a value may hold itself

    def write(self, value: Any, where: str) -> str:
        """The text of a value; ``where`` says whose it is, as "argument root"."""
        if isinstance(value, _SCALARS) and type(value) in _SCALARS:
            return self._path(value) if isinstance(value, str) else _scalar(value)
        if id(value) in self._above or len(self._above) > _MAX_DEPTH:
            return "<itself>" if id(value) in self._above else "<deep>"
        self._above.append(id(value))
        try:
            return self._compound(value, where)
        finally:
            self._above.pop()

    def _compound(self, value: Any, where: str) -> str:
        def each(items: Any) -> list[str]:
            return [self.write(item, where) for item in items]

        cls = type(value)
        if isinstance(value, PurePath):
            return self._path(str(value) if str(value) != value.name else f"./{value}")
        if isinstance(value, enum.Enum):
            return f"{self._reach(cls)}.{value.name}"
        if isinstance(value, functools.partial):
            parts = [self.write(value.func, where), *each(value.args), self.write(value.keywords, where)]
            return f"partial({', '.join(parts)})"
        if isinstance(value, (set, frozenset)):
            return f"{cls.__name__}({', '.join(sorted(each(value)))})"
        if isinstance(value, Mapping):
            pairs = [f"{self.write(key, where)}: {self.write(item, where)}" for key, item in value.items()]
            return f"{cls.__name__}({', '.join(pairs if isinstance(value, OrderedDict) else sorted(pairs))})"
        if isinstance(value, (list, tuple, deque)):
            return f"{self._named(cls)}({', '.join(each(value))})"
        if isinstance(value, (range, slice, bytearray, memoryview)):
            return repr(value) if isinstance(value, (range, slice)) else _scalar(bytes(value))
        if isinstance(value, re.Pattern):
            return f"re({value.pattern!r}, {value.flags})"
        if isinstance(value, _OPAQUE):
            return cls.__name__
        if callable(value) and hasattr(value, "__wrapped__") and not hasattr(value, "__code__"):
            return f"{cls.__name__}({self._reach(value.__wrapped__)})"  # functools.cache
        if isinstance(value, (type, types.ModuleType)) or hasattr(value, "__code__") or _is_routine(value):
            return self._reach(value)
        return self._instance(value, where)

    def _named(self, cls: type) -> str:
        return cls.__name__ if cls.__module__ in ("builtins", "collections") else self._reach(cls)

    def _instance(self, value: Any, where: str) -> str:
        cls = type(value)
        top = cls.__module__.partition(".")[0]
        if top == "numpy" and (text := _of_numpy(value)) is not None:
            return text
        if top == "torch" and (text := _of_torch(value)) is not None:
            return text
        state = dict(getattr(value, "__dict__", {}))
        for base in cls.__mro__:
            for slot in getattr(base, "__slots__", ()):
                if isinstance(slot, str) and slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                    state[slot] = getattr(value, slot)
        if not state and cls.__module__ != "__main__" and not hasattr(value, "__dict__"):
            raise CannotTell(
                f"{where} holds a {cls.__module__}.{cls.__qualname__}, of which nobody can tell whether it is the same "
                "in the next process: pass what it is made of, or say version= and change it when the data changes"
            )
        return f"{self._reach(cls)}({self.write(state, where)})"


def _is_routine(value: Any) -> bool:
    return type(value).__name__ in _ROUTINES


def _scalar(value: Any) -> str:
    if isinstance(value, (str, bytes)) and len(value) > _MAX_SHOWN:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return f"{value[:40]!r}... ({len(value)} long, sha256 {hashlib.sha256(data).hexdigest()})"
    return repr(value)


def _of_numpy(value: Any) -> str | None:
    import numpy as np

    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{type(value).__name__}({value.dtype.str}, {value.shape}, {digest})"
    if isinstance(value, np.dtype):
        return f"dtype({value.str})"
    if isinstance(value, np.random.Generator):
        return f"Generator({value.bit_generator.state!r})"
    return None


def _of_torch(value: Any) -> str | None:
    import torch

    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return f"Tensor({plain.dtype}, {tuple(plain.shape)}, {hashlib.sha256(data).hexdigest()})"
    if isinstance(value, (torch.dtype, torch.device, torch.Size, torch.layout)):
        return str(value)
    if isinstance(value, torch.Generator):
        return f"Generator({hashlib.sha256(value.get_state().numpy().tobytes()).hexdigest()})"
    return None
