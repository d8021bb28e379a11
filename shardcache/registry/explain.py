"""In which parts two fingerprints differ, for a person to read."""

import difflib
import os
from collections.abc import Callable, Mapping
from typing import Any

from shardcache.registry.data import Files, difference
from shardcache.registry.fingerprint import Fingerprint, decisive, fingerprint
from shardcache.registry.store import Entry, named, root_of


def explain(
    name: str,
    factory: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    allow_shared: bool = False,
    **options: Any,
) -> dict[str, list[str]]:
    """What tells this dataset from each published cache of a name: by key, the last used first, a text for each part.

    An empty list means that it would be used again. Nothing is built, and nothing is imported because a cache names it.

    Args:
        name: as for :func:`~shardcache.get_or_build`; or the path of one cache.
        factory: as for :func:`~shardcache.get_or_build`.
        kwargs: the factory's arguments.
        cache_dir: the folder of all caches.
        allow_shared: whether others may write to that folder.
        options: ``version``, ``deps``, ``data_check`` and the build options, as they would be given.
    """
    rest = {key: options.pop(key) for key in ("version", "deps", "data_check") if key in options}
    root = root_of(cache_dir, allow_shared=allow_shared)
    new = fingerprint(factory, kwargs, options=decisive(options), skip=str(root), **rest)
    found = {}
    for slot in named(root, name):
        entry = slot.entry()
        if entry is not None and slot.is_published:
            found[slot.key] = differences(entry.fingerprint, new) + changed_since(entry, str(root))
    return found


def changed_since(entry: Entry, skip: str) -> list[str]:
    """What happened to files that the dataset turned out to use; where they are gone, nobody can tell."""
    there = (files for files in entry.discovered.values() if not files.are_gone)
    return [text for files in there if (text := difference(files, files.again(skip)))]


def is_same_but_gone(old: Fingerprint, new: Fingerprint) -> bool:
    """Whether the only difference is that files are not there any more, by which nobody can compare."""
    gone = {label for label, files in old.data.items() if label not in new.data and files.are_gone}
    return bool(gone) and _without(old, gone) == _without(new, gone)


def _without(one: Fingerprint, labels: set[str]) -> Any:
    """A fingerprint in which the paths of some labels count as they were written."""
    by_name = {label.removeprefix("argument ") for label in labels}
    arguments = {name: one.shown[name] if name in by_name else text for name, text in one.arguments.items()}
    functions = {name: text for name, text in one.functions.items() if name not in labels}
    digests = {label: files.digest for label, files in one.data.items() if label not in labels}
    return one.factory, arguments, functions, one.packages, digests, one.options, one.version, one.format


_MAX_LINES = 40  # of a function's difference


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """One text for each part that differs, empty where the two are the same."""
    said = []
    if old.factory != new.factory:
        said.append(f"factory: {old.factory} -> {new.factory}")
    said += _each(old.arguments, new.arguments, lambda name: _argument(name, old, new))
    said += _each(old.functions, new.functions, lambda name: _function(name, old.functions, new.functions))
    said += _each(old.packages, new.packages, lambda name: _value(f"package {name}", old.packages, new.packages, name))
    for name in sorted(old.data.keys() | new.data.keys()):
        if name in old.data and name in new.data:
            said += filter(None, [difference(old.data[name], new.data[name])])
        else:
            said.append(f"{name}: {_root(old.data.get(name))} -> {_root(new.data.get(name))}")
    said += _each(old.options, new.options, lambda name: _value(f"option {name}", old.options, new.options, name))
    for what in ("version", "format"):
        before, after = getattr(old, what), getattr(new, what)
        if before != after:
            said.append(f"{what}: {before} -> {after}")
    return said


def _each(old: Mapping[str, str], new: Mapping[str, str], say: Callable[[str], str]) -> list[str]:
    return [say(name) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _argument(name: str, old: Fingerprint, new: Fingerprint) -> str:
    before, after = old.shown.get(name, "not given"), new.shown.get(name, "not given")
    what = name if name.startswith("dependency ") else f"argument {name}"
    if before == after:
        before, after = old.arguments.get(name, "not given"), new.arguments.get(name, "not given")
    return f"{what}: {before} -> {after}"


def _value(what: str, old: Mapping[str, str], new: Mapping[str, str], name: str) -> str:
    return f"{what}: {old.get(name, 'not used')} -> {new.get(name, 'not used')}"


def _function(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if ": " in name:  # what a function refers to
        return f"{name}: {old.get(name, 'not used')} -> {new.get(name, 'not used')}"
    if name not in old or name not in new:
        return f"{name} is {'reached now' if name in new else 'not reached any more'}"
    lines = list(difflib.unified_diff(old[name].splitlines(), new[name].splitlines(), lineterm="", n=2))[2:]
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], "..."]
    return "\n".join([f"{name} changed:", *(f"    {line}" for line in lines)])


def _root(files: Files | None) -> str:
    return "no files" if files is None else files.root
