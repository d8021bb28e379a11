"""The dataset that is being built: made from what the user gave, read one sample at a time."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardcache.builder.tolerance import STRICT, Tolerance
from shardcache.errors import SampleError, SourceError, UsageError
from shardcache.format import spec
from shardcache.format.manifest import Manifest

_ROWS_AT_ONCE = 1 << 15


class Source:
    """A map-style dataset with its length, whose errors name the sample; ``tolerance`` says what becomes of them."""

    def __init__(self, dataset: Any, tolerance: Tolerance = STRICT) -> None:
        self.dataset, self.tolerance = dataset, tolerance
        self.samples = _length(dataset)
        self.kept: dict[int, Any] = {}  # samples that were read ahead, so that nothing is read twice

    def blocks(self, plan: Manifest, number: int) -> Iterator[list[int]]:
        """The source indices of the rows of each block of a shard; computed for many blocks at once: it is cheaper."""
        start = number * plan.blocks_per_shard
        stop, step = start + plan.shard_blocks(number), -(-_ROWS_AT_ONCE // plan.rows_per_block)
        permutation = plan.permutation()
        for first in range(start, stop, step):
            last = min(min(first + step, stop) * plan.rows_per_block, plan.samples)
            rows = np.arange(first * plan.rows_per_block, last)
            indices = (rows if permutation is None else permutation.forward(rows)).tolist()
            for begin in range(0, len(indices), plan.rows_per_block):
                yield indices[begin : begin + plan.rows_per_block]

    def read(self, index: int) -> Any:
        """``dataset[index]``; :class:`SampleError` where it raises."""
        if index in self.kept:
            return self.kept.pop(index)
        try:
            return self.dataset[index]
        except (Exception, SystemExit) as error:
            text = f"dataset[{index}] raised {type(error).__name__}: {error}"
            if isinstance(error, IndexError):
                text += f" (len(dataset) says {self.samples})"
            raise SampleError(text) from error


def _length(dataset: Any) -> int:
    try:
        samples = len(dataset)
    except Exception as error:
        raise SourceError(
            f"len() of the dataset ({type(dataset).__qualname__}) raised {type(error).__name__}: {error}; "
            "a map-style dataset with __len__ and __getitem__ is needed"
        ) from error
    if not samples:
        raise SourceError(f"the dataset ({type(dataset).__qualname__}) is empty: len() is 0")
    if samples > spec.MAX_ROWS:
        raise SourceError(
            f"the dataset ({type(dataset).__qualname__}) must have at most {spec.MAX_ROWS} samples: {samples}"
        )
    return samples


class Recipe:
    """How to make the dataset, in this process or in a worker.

    ``dataset`` is a dataset; a callable that makes one, called with ``kwargs``; or ``"package.module:callable"`` or
    ``"file.py:callable"``, which is imported first. Can be pickled where ``dataset`` can.
    """

    def __init__(self, dataset: Any, kwargs: Mapping[str, Any] | None, tolerance: Tolerance = STRICT) -> None:
        names: Any = kwargs or {}
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"kwargs must be a dict of arguments by name, was {kwargs!r}")
        self._dataset, self._kwargs, self.tolerance = dataset, dict(names), tolerance
        self._prepared: Any = None
        self._is_made = is_made(dataset)
        if self._is_made and kwargs:
            raise UsageError("kwargs= goes with a callable that makes the dataset; a dataset was given")
        if not (self._is_made or isinstance(dataset, str) or callable(dataset)):
            raise UsageError(
                "a dataset must have __len__ and __getitem__, or __iter__; or be a callable that makes one, or "
                f"'module:callable'; was {type(dataset).__module__}.{type(dataset).__qualname__}"
            )

    def source(self) -> Source:
        """A dataset, ready to be read."""
        from shardcache.builder.stream import Stream

        dataset = self()
        if "DataLoader" in {cls.__name__ for cls in type(dataset).__mro__}:
            raise UsageError("a DataLoader yields batches, a cache holds samples: give the dataset that it loads")
        return (Stream if is_stream(dataset) else Source)(dataset, self.tolerance)

    def tolerating(self, tolerance: Tolerance) -> "Recipe":
        """The same, for a build that takes errors so."""
        self.tolerance = tolerance
        return self

    def prepare(self) -> Any:
        """Make the dataset now; this process and those forked from it use this one from now on."""
        self._prepared = self()
        return self._prepared

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    @property
    def factory(self) -> Any:
        """What makes the dataset, or the dataset."""
        return self._dataset

    def __call__(self) -> Any:
        if self._is_made:
            return self._dataset
        if self._prepared is not None:
            return self._prepared
        factory = load(self._dataset) if isinstance(self._dataset, str) else self._dataset
        if is_made(factory) and not self._kwargs:
            return factory
        name = self._dataset if isinstance(self._dataset, str) else getattr(factory, "__qualname__", repr(factory))
        if not callable(factory):
            raise UsageError(f"{name} cannot be called with arguments; it is of type {type(factory).__qualname__}")
        try:
            return factory(**self._kwargs)
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in self._kwargs.items())
            raise SourceError(f"{name}({given}) raised {type(error).__name__}: {error}") from error


def is_made(thing: Any) -> bool:
    """Whether something is a dataset, not what makes one."""
    return is_dataset(thing) or is_stream(thing)


def is_dataset(thing: Any) -> bool:
    """Whether something is a map-style dataset."""
    if isinstance(thing, (type, str)) or _is_iterable_dataset(thing):
        return False
    return hasattr(thing, "__getitem__") and hasattr(thing, "__len__")


def is_stream(thing: Any) -> bool:
    """Whether something is a dataset that can only be iterated."""
    if isinstance(thing, (type, str, bytes)) or is_dataset(thing):
        return False
    return hasattr(thing, "__iter__")


def _is_iterable_dataset(thing: Any) -> bool:
    """torch's, which inherits a ``__getitem__`` that it does not have, and may have a length."""
    data = sys.modules.get("torch.utils.data")  # without torch there is none
    return data is not None and isinstance(thing, data.IterableDataset)


def load(target: str) -> Any:
    """What ``"package.module:name"`` or ``"file.py:name"`` names."""
    module_name, _, name = target.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"target {target!r}: must be 'package.module:callable' or 'file.py:callable'")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    except UsageError:
        raise
    except Exception as error:
        raise SourceError(f"importing {module_name} raised {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"target {target!r}: {module_name} has no {name!r}")
        found = getattr(found, part)
    return found


def find_module(name: str, importer: str) -> tuple[str, str | None] | None:
    """The full name and the file of a module that another one would import; None where there is none."""
    try:
        full = importlib.util.resolve_name(name, importer.rpartition(".")[0])
        found = importlib.util.find_spec(full)
    except (ImportError, ValueError, AttributeError):
        return None
    return None if found is None else (full, found.origin)


def import_module(name: str) -> Any:
    """A module that the project's own code imports."""
    return importlib.import_module(name)


def _load_module(name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"there is no module {error.name!r} here ({os.getcwd()})") from None
        raise


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    path = path.resolve()
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    if name not in sys.modules:
        sys.modules[name] = module  # so that its classes can be pickled
    sys.path.insert(0, str(path.parent))
    found.loader.exec_module(module)
    return module
