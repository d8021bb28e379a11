"""What is written down of where a cache comes from; nothing private: no paths, no names of users or machines."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shardcache.builder.source import load
from shardcache.format.provenance import TIME, Provenance

_PACKAGES = ("shardcache", "torch", "numpy", "lmdb", "zstandard")


def provenance(factory: Any, began: float) -> Provenance:
    """Of a build that is about to be published and began at ``began`` (``time.time()``)."""
    named = load(factory) if isinstance(factory, str) else factory
    while isinstance(named, functools.partial):
        named = named.func
    has_place = hasattr(named, "__qualname__") and hasattr(named, "__module__")  # a generator has the first alone
    made = named if has_place else type(named)
    module = sys.modules.get(getattr(made, "__module__", ""))
    commit, is_dirty = _commit(getattr(module, "__file__", None))
    name = factory if isinstance(factory, str) else f"{made.__module__}:{made.__qualname__}"
    return Provenance(
        built=time.strftime(TIME, time.gmtime()),
        seconds=round(time.time() - began, 3),
        factory=os.path.basename(name),
        versions={"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        commit=commit,
        is_dirty=is_dirty,
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _commit(file: str | None) -> tuple[str | None, bool | None]:
    """The commit of the work tree in which a file lies, and whether files under version control differ from it."""
    if file is None:
        return None, None
    try:
        commit = _git(Path(file).parent, "rev-parse", "HEAD").strip()
        return commit, bool(_git(Path(file).parent, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # looking at a work tree must not write into it
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment).stdout
