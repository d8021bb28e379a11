"""What a cache is made of, part by part: the same parts, the same cache."""

import hashlib
import inspect
import os
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
from shardcache.registry.literal import CannotTell, Literals, plain_text
from shardcache.registry.modules import name_of

_LONGEST = 20_000  # of a text that is kept


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

    def __init__(self, check: str, skip: str, lenient: bool) -> None:
        self.met = data.Met(check, skip)
        self.code = Code(self.met.add)
        self._lenient = lenient
        self._literals = Literals(_name if lenient else self.code.reach, self._path)

    def _path(self, value: Any, where: str) -> str:
        """A path by its files; a word without a separator that is a path too enters as both."""
        path = data.as_path(value, bare=where.startswith(("argument ", "dependency ")))
        text = str(value)
        if path is None:
            return plain_text(f"./{text}" if isinstance(value, PurePath) and os.sep not in text else text)
        is_word = os.sep not in text and not isinstance(value, PurePath)
        return (f"{text!r} " if is_word else "") + self.met.add(path, where)

    def write(self, value: Any, label: str) -> str:
        """The text of an argument or a dependency."""
        try:
            return self._literals.write(value, label)
        except CannotTell:
            if not self._lenient:
                raise
            return type(value).__qualname__

    def named(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The texts with the names of files; what is very long enters as a digest."""
        return {name: _bounded(self.met.named(text)) for name, text in texts.items()}


def _name(thing: Any) -> str:
    module = name_of(str(getattr(thing, "__module__", "")))
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _bounded(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:_LONGEST]}... ({len(text)} long, sha256 {digest})"


def listed(deps: Any) -> tuple[Any, ...]:
    """Dependencies, of which a text alone would be as many as it has letters."""
    if isinstance(deps, str | bytes) or not isinstance(deps, Iterable):
        raise UsageError(f"deps must be a list of paths, functions and values, was {deps!r}")
    return tuple(deps)


def fingerprint(
    factory: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    deps: Iterable[Any] = (),
    data_check: str = "mtime",
    options: Mapping[str, Any] | None = None,
    skip: str = "",
) -> Fingerprint:
    """The parts of the cache that would be built; nothing of the dataset is read.

    Files below ``skip``, the folder of all caches, are no data.

    Raises:
        UsageError: something cannot be compared from one process to the next; the message says what to do.
    """
    Recipe(factory, kwargs)  # refuses what is no dataset
    if version is not None and not isinstance(version, str):
        raise UsageError(f"version must be a string, was {version!r}")
    made = load(factory) if isinstance(factory, str) else factory
    maker = _Maker(data_check, skip, lenient=version is not None)
    arguments, shown = {}, {}
    for name, value in _arguments(made, kwargs or {}).items():
        arguments[name], shown[name] = maker.write(value, f"argument {name}"), _shown(value)
    called = maker.write(made, "the dataset" if is_made(made) else "the factory")
    for number, one in enumerate(listed(deps)):
        label = f"dependency {number}"
        if isinstance(one, PurePath) and not os.path.exists(one):
            raise UsageError(f"{one}: a file or folder that the dataset depends on is not there")
        arguments[label], shown[label] = maker.write(one, label), _shown(one)
    words = Literals(_name, lambda value, _: plain_text(str(value)))
    written = {name: words.write(value, f"option {name}") for name, value in sorted((options or {}).items())}
    maker.code.follow()
    maker.met.close()
    return Fingerprint(
        factory=maker.met.named(called),
        arguments=maker.named(arguments),
        shown=shown,
        functions=maker.named(maker.code.functions),
        packages=maker.code.packages,
        data=maker.met.data,
        options=written,
        version=version,
        format=spec.FORMAT_VERSION,
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
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    is_starred = {name for name, one in bound.signature.parameters.items() if one.kind in starred}
    return {name: value for name, value in bound.arguments.items() if name not in is_starred or value}


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, PurePath) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
