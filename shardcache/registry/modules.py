"""Modules: which are the project's own code, what they are called, and which package the others belong to."""

import functools
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

_INSTALLED = {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_SITES = {"site-packages", "dist-packages"}


def file_of(module: str) -> str | None:
    """The file of a module that was imported, None where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return os.path.realpath(file) if file else None


def is_project(module: str) -> bool:
    """Whether a module is code of the project: neither installed nor of the standard library."""
    if module in ("__main__", "__mp_main__"):
        return True
    top = module.partition(".")[0]
    if top in ("builtins", "shardcache") or top in sys.stdlib_module_names:
        return False
    file = file_of(module)
    return file is not None and not is_installed(file, top)


@functools.cache
def is_installed(file: str, top: str) -> bool:
    """Whether a file of the package ``top`` was put there by an installer."""
    if any(file.startswith(place + "/") for place in _INSTALLED) or _SITES & set(Path(file).parts):
        return True
    home = Path(file).parent
    while (home / "__init__.py").exists():
        home = home.parent
    return any(_is_metadata_of(one, top) for one in home.glob("*.dist-info"))  # `pip install --target`


def _is_metadata_of(folder: Path, top: str) -> bool:
    record = folder / "RECORD"
    try:
        return any(line.startswith((f"{top}/", f"{top}.")) for line in record.read_text(encoding="utf-8").splitlines())
    except OSError:
        return folder.name.partition("-")[0].lower() == top.lower()


@functools.cache
def name_of(module: str) -> str:
    """A module's name by the place of its file, so that it is the same for a script, a module and a path."""
    file = file_of(module)
    if file is None or not is_project(module):
        return module
    path = Path(file)
    names = [] if path.name == "__init__.py" else [path.stem]
    while (path.parent / "__init__.py").exists():
        path = path.parent
        names.insert(0, path.name)
    return ".".join(names) or module


def versions_of(module: str) -> dict[str, str]:
    """The installed packages that a module belongs to, with their versions; Python for the standard library."""
    top = module.partition(".")[0]
    if top == "shardcache" or is_project(module):
        return {}  # of shardcache itself, what matters is the version of the format
    if top in sys.stdlib_module_names or top == "builtins":
        return {"python": ".".join(map(str, sys.version_info[:2]))}
    names = _distributions().get(top, [])
    if not names:
        return {top: str(getattr(sys.modules.get(top), "__version__", "unknown"))}
    return {name: importlib.metadata.version(name) for name in names}


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
