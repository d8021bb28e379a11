"""What a cache is made of, part by part: the same parts, the same cache."""

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from shardcache.builder.source import Recipe, is_made, load
from shardcache.errors import UsageError
from shardcache.format import spec
from shardcache.registry import data
from shardcache.registry.code import Code
from shardcache.registry.data import Files
from shardcache.registry.literal import CannotTell, Literals


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parts. ``key`` is a digest of all, but for the places at which files lie.

    ``arguments``, ``functions`` (with globals and defaults) and ``options`` are texts by name; ``shown`` has the
    arguments as a person would write them. ``data`` has the files by the argument or dependency that names them.
    """

    factory: str
    arguments: dict[str, str]
    shown: dict[str, str]
    functions: dict[str, str]
    packages: dict[str, str]
    data: dict[str, Files]
    options: dict[str, str]
    version: str | None
    format: int = spec.FORMAT_VERSION

    @property
    def key(self) -> str:
        """32 hex digits."""
        files = {name: one.digest for name, one in self.data.items()}
        parts = msgspec.structs.replace(self, shown={}, data={})
        text = msgspec.json.encode([parts, files], order="deterministic")
        return hashlib.sha256(text).hexdigest()[:32]


class _Maker:
    """Writes the parts down; the paths that it meets become data."""

    def __init__(self, check: str, lenient: bool) -> None:
        self.data: dict[str, Files] = {}
        self._check, self._lenient = check, lenient
        self._label: str | None = None  # what paths belong to; None where text is only text
        self.code = Code(Literals(self._reach, self._path))
        self._literals = Literals(self._reach, self._path)

    def _reach(self, thing: Any) -> str:
        label, self._label = self._label, None  # in code, a path is text: whoever means a file says deps=
        try:
            return self._name(thing) if self._lenient else self.code.reach(thing)
        finally:
            self._label = label

    @staticmethod
    def _name(thing: Any) -> str:
        return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"

    def _path(self, text: str) -> str:
        path = data.as_path(text) if self._label is not None else None
        if path is None or self._label is None:
            return repr(text)
        label = self._label
        while label in self.data and self.data[label].root != path:
            label += "'"
        if label not in self.data:
            self.data[label] = data.files_under(path, self._check)
        return f"<files of {label}>"

    def write(self, value: Any, label: str) -> str:
        """The text of an argument or a dependency."""
        self._label = label
        try:
            return self._literals.write(value, label)
        except CannotTell:
            if not self._lenient:
                raise
            return type(value).__qualname__
        finally:
            self._label = None


def fingerprint(
    factory: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    deps: Iterable[Any] = (),
    data_check: str = "mtime",
    options: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """The parts of the cache that would be built; nothing of the dataset is read.

    Raises:
        UsageError: something cannot be compared from one process to the next; the message says what to do.
    """
    Recipe(factory, kwargs)  # refuses what is no dataset
    if version is not None and not isinstance(version, str):
        raise UsageError(f"version must be a string, was {version!r}")
    made = load(factory) if isinstance(factory, str) else factory
    maker = _Maker(data_check, lenient=version is not None)
    arguments, shown = {}, {}
    for name, value in _arguments(made, kwargs or {}).items():
        arguments[name], shown[name] = maker.write(value, f"argument {name}"), _shown(value)
    is_instance = is_made(made)
    name = maker.write(made, "the dataset") if is_instance else maker.write(made, "the factory")
    for number, one in enumerate(deps):
        path = (
            data.as_path(str(one) if isinstance(one, PurePath) else one) if isinstance(one, (str, PurePath)) else None
        )
        if isinstance(one, PurePath) and path is None:
            data.files_under(str(one))  # says that it is not there
        label = f"dependency {path or number}"
        arguments[f"dependency {number}"] = maker.write(path or one, label)
        shown[f"dependency {number}"] = _shown(one)
    return Fingerprint(
        factory=name,
        arguments=arguments,
        shown=shown,
        functions=maker.code.functions,
        packages=maker.code.packages,
        data=maker.data,
        options={key: repr(value) for key, value in sorted((options or {}).items())},
        version=version,
    )


def decisive(build_options: Mapping[str, Any]) -> dict[str, Any]:
    """The build options that decide about the bytes."""
    defaults = {"layout": "shuffled", "seed": 0, "shuffle_window": None, "codec": "auto", "block_bytes": None}
    defaults["on_error"] = "raise"
    given = {key: value for key, value in build_options.items() if value is not None}
    return {key: given.get(key, default) for key, default in defaults.items()}


def _arguments(factory: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What the factory is called with, its defaults included."""
    if is_made(factory) and not kwargs:
        return {}
    try:
        bound = inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise UsageError(f"{getattr(factory, '__qualname__', factory)!s} cannot be called so: {error}") from None
    except ValueError:  # a built-in without a signature
        return dict(kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name in kwargs or value not in ((), {})}


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, PurePath) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def discover(dataset: Any, known: Iterable[Files], check: str) -> dict[str, Files]:
    """The files at which attributes of a dataset point, and of what it wraps, that nobody has named."""
    roots = {files.root for files in known}
    found: dict[str, Files] = {}
    for label, value in _attributes(dataset, "", 2):
        path = data.as_path(str(value)) if isinstance(value, (str, PurePath)) else None
        if path is not None and path not in roots:
            roots.add(path)
            found[f"attribute {label}"] = data.files_under(path, check)
    return found


def _attributes(thing: Any, before: str, depth: int) -> Iterable[tuple[str, Any]]:
    for name, value in getattr(thing, "__dict__", {}).items():
        yield before + name, value
        if depth and hasattr(value, "__getitem__") and hasattr(value, "__dict__"):
            yield from _attributes(value, f"{before}{name}.", depth - 1)
