"""Values as text that is the same for equal values in every process: arguments, constants, what closures hold.

What has no such text is refused (:class:`CannotTell`): a part that is left out would be a stale cache some day, and one
that is another in each process a build in each.
"""

import collections
import enum
import functools
import hashlib
import io
import logging
import random
import re
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

from shardcache.errors import UsageError

_MAX_DEPTH = 100
_MAX_SHOWN = 200  # of bytes and long text: the rest enters as a digest
_SCALARS = (bool, int, float, complex, str, bytes, type(None), type(...))
_ROUTINES = (
    "builtin_function_or_method method method_descriptor method-wrapper classmethod_descriptor ufunc wrapper_descriptor"
).split()
_OPAQUE = (logging.Logger, type(threading.Lock()), type(threading.RLock()), threading.local)  # say nothing about data
_IS_HEAP_TYPE = 1 << 9  # a class that was made by a statement, or as if

_RANDOM = "a random generator, whose state is another one after each use: pass a seed, and make the generator from it"
_OPEN_FILE = "an open file: pass its path"
_USED_UP = "an iterator, which is used up by looking at it: pass a list, or what it is made from"


class CannotTell(UsageError):
    """A value whose meaning cannot be written down; the message says which one and what to do."""


class Literals:
    """Writes values down. ``reach`` is given every function and class that is met, and returns its name.

    ``path`` is given every text and path among the values and whose it is, and returns what stands for it.
    """

    def __init__(self, reach: Callable[[Any], str], path: Callable[[Any, str], str]) -> None:
        self._reach, self._path = reach, path
        self._above: list[int] = []  # ids of the containers around: a value may hold itself

    def write(self, value: Any, where: str) -> str:
        """The text of a value; ``where`` says whose it is, as "argument root"."""
        if type(value) in _SCALARS:
            return self._path(value, where) if isinstance(value, str) else _scalar(value)
        if id(value) in self._above:
            return f"<what holds it, {len(self._above) - self._above.index(id(value))} levels up>"
        if len(self._above) >= _MAX_DEPTH:
            raise _cannot(where, f"is nested more than {_MAX_DEPTH} levels deep", "pass something flatter")
        self._above.append(id(value))
        try:
            return self._compound(value, where)
        finally:
            self._above.pop()

    def _compound(self, value: Any, where: str) -> str:
        cls = type(value)
        if isinstance(value, PurePath):
            return self._path(value, where)
        if isinstance(value, enum.Enum):
            return f"{self._reach(cls)}.{value.name or value.value}"
        if isinstance(value, functools.partial):
            parts = [self.write(value.func, where), *self._each(value.args, where), self.write(value.keywords, where)]
            return f"partial({', '.join(parts)})"
        if isinstance(value, _OPAQUE):
            return cls.__name__
        if callable(value) and hasattr(value, "__wrapped__") and not hasattr(value, "__code__"):
            return f"{cls.__name__}({self._reach(value.__wrapped__)})"  # functools.cache
        if cls.__name__ in _ROUTINES:
            return self._routine(value, where)
        if isinstance(value, (type, types.ModuleType)) or hasattr(value, "__code__"):
            return self._reach(value)
        text = _of_library(value, where)
        return text or self._container(value, where) or self._instance(value, where)

    def _each(self, items: Iterable[Any], where: str) -> list[str]:
        return [self.write(item, where) for item in items]

    def _routine(self, value: Any, where: str) -> str:
        """A function in C, and what it is bound to."""
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, (type, types.ModuleType)) or _is_shared_generator(owner):
            return self._reach(getattr(value, "__func__", value))
        if isinstance(value, types.MethodType):
            return self._reach(value)
        return f"{value.__name__} of {self.write(owner, where)}"

    def _container(self, value: Any, where: str) -> str | None:
        cls = type(value)
        if cls.__module__ == "numpy":  # an array of objects
            return f"array({self.write(value.tolist(), where)})" if hasattr(value, "tolist") else None
        if isinstance(value, (int, float, complex, str, bytes)):  # of a class of its own
            base: Any = next(base for base in (int, float, complex, str, bytes) if isinstance(value, base))
            plain = base.__getnewargs__(value)[0]
            return f"{self._reach(cls)}({self.write(plain, where)}{self._extra(value, where)})"
        if isinstance(value, (set, frozenset)):
            items = ", ".join(sorted(self._each(value, where)))
            return f"{self._named(cls)}({items}{self._extra(value, where)})"
        if isinstance(value, Mapping):
            pairs = [f"{self.write(key, where)}: {self.write(item, where)}" for key, item in value.items()]
            items = ", ".join(pairs if isinstance(value, OrderedDict) else sorted(pairs))
            return f"{self._named(cls)}({items}{self._extra(value, where)})"
        if isinstance(value, (list, tuple, deque)):
            return f"{self._named(cls)}({', '.join(self._each(value, where))}{self._extra(value, where)})"
        if isinstance(value, slice):
            return f"slice({', '.join(self._each((value.start, value.stop, value.step), where))})"
        if isinstance(value, (bytearray, memoryview)):
            return f"{cls.__name__}({_scalar(bytes(value))})"
        if isinstance(value, range):
            return repr(value)
        if isinstance(value, re.Pattern):
            return f"re({value.pattern!r}, {value.flags})"
        return None

    def _extra(self, value: Any, where: str) -> str:
        """What an instance of a subclass of a container has besides."""
        state = dict(getattr(value, "__dict__", {}))
        if isinstance(value, collections.defaultdict):
            state["default_factory"] = value.default_factory
        return f", {self.write(state, where)}" if state else ""

    def _named(self, cls: type) -> str:
        return cls.__name__ if cls.__module__ in ("builtins", "collections") else self._reach(cls)

    def _instance(self, value: Any, where: str) -> str:
        """An object, by the state that it would be copied with."""
        cls = type(value)
        if isinstance(value, io.IOBase):
            raise _cannot(where, f"holds {_OPEN_FILE}")
        if hasattr(cls, "__next__") and _is_native(cls):
            raise _cannot(where, f"holds a {cls.__module__}.{cls.__qualname__}, {_USED_UP}")
        if isinstance(value, random.Random):
            raise _cannot(where, f"holds {_RANDOM}")
        if _is_native(cls):
            return self._reduced(value, where)
        state: Any = dict(getattr(value, "__dict__", {}))
        if getattr(cls, "__getstate__", None) is not getattr(object, "__getstate__", None):
            state = value.__getstate__()
        else:
            for base in cls.__mro__:
                for slot in slots_of(base):
                    if hasattr(value, slot):
                        state[slot] = getattr(value, slot)
        return f"{self._reach(cls)}({self.write(state, where)})"

    def _reduced(self, value: Any, where: str) -> str:
        """An object whose state is not (only) in Python's hands: by what a copy is made of."""
        cls = type(value)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            raise _cannot(
                where,
                f"holds a {cls.__module__}.{cls.__qualname__}, of which nobody can tell whether it is the same in the "
                "next process",
                "pass what it is made of",
            ) from None
        if isinstance(reduced, str):
            return f"{cls.__module__}.{reduced}"
        maker, arguments, state, *items = (*reduced, None, None)[:5]
        rest = [list(each) for each in items if each is not None]
        return f"{self._reach(cls)}({', '.join(self._each((maker, arguments, state, *rest), where))})"


def _cannot(where: str, what: str, advice: str = "") -> CannotTell:
    advice = f": {advice}, or" if advice else ", or"
    return CannotTell(f"{where} {what}{advice} say version= and change it when the data changes")


def _is_native(cls: type) -> bool:
    """Whether instances may hold something that neither ``__dict__`` nor ``__slots__`` shows."""
    bases = cls.__mro__[:-1]
    if not all(base.__flags__ & _IS_HEAP_TYPE for base in bases):
        return True
    is_open = bool(cls.__dictoffset__) or any("__slots__" in vars(base) for base in bases)
    return bool(bases) and not is_open


def slots_of(cls: type) -> list[str]:
    """The names of what a class keeps outside of ``__dict__``, as its instances have them."""
    slots = vars(cls).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [slot for slot in slots if isinstance(slot, str)]
    private = [
        f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
    ]
    return [name for name in private if name not in ("__dict__", "__weakref__")]


def _scalar(value: Any) -> str:
    if isinstance(value, (str, bytes)) and len(value) > _MAX_SHOWN:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return f"{value[:40]!r}... ({len(value)} long, sha256 {hashlib.sha256(data).hexdigest()})"
    return repr(value)


plain_text = _scalar


def _is_shared_generator(owner: Any) -> bool:
    """Whether a function is one like ``random.random``, bound to the generator of the whole process."""
    import numpy as np

    return owner is getattr(random, "_inst", None) or owner is getattr(np.random.mtrand, "_rand", None)


def _of_library(value: Any, where: str) -> str | None:
    top = type(value).__module__.partition(".")[0]
    if top == "numpy":
        return _of_numpy(value, where)
    if top == "torch" or hasattr(type(value), "__torch_function__"):
        try:
            return _of_torch(value, where)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            what = f"holds a {type(value).__qualname__} whose values cannot be read ({error})"
            raise _cannot(where, what, "pass what it is made of") from None
    return None


def _of_numpy(value: Any, where: str) -> str | None:
    import numpy as np

    if isinstance(value, (np.random.Generator, np.random.RandomState, np.random.BitGenerator)):
        raise _cannot(where, f"holds {_RANDOM}")
    if type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic):
        if value.dtype.hasobject:
            return None
        digest = hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
        return f"{type(value).__name__}({value.dtype.str}, {value.dtype.descr}, {value.shape}, {digest})"
    if isinstance(value, np.dtype):
        return f"dtype({value.str}, {value.descr})"
    return None


def _of_torch(value: Any, where: str) -> str | None:
    import torch

    if isinstance(value, torch.Generator):
        raise _cannot(where, f"holds {_RANDOM}")
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        data: Any = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b""
        return f"Tensor({plain.dtype}, {tuple(plain.shape)}, {hashlib.sha256(data).hexdigest()})"
    if isinstance(value, (torch.dtype, torch.device, torch.Size, torch.layout)):
        return str(value)
    return None
