"""A dataset as one writes it by hand: every Python source file on this machine, one file a sample.

Nothing in here knows of shardcache.
"""

import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class PythonSources(Dataset[dict[str, Any]]):
    """The Python files below some folders, in the order of their paths; a file that has several names comes once.

    Args:
        roots: folders to search; default: the standard library and the installed packages.
        max_files: take about every n-th file, so that there are at most so many.
        max_bytes: the same, for the bytes of all files together.
    """

    def __init__(
        self, roots: Sequence[str | Path] | None = None, *, max_files: int | None = None, max_bytes: int | None = None
    ) -> None:
        self.root, found = _find([Path(root) for root in roots] if roots is not None else _installed())
        self.files = _spread(found, max_files, max_bytes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``path``: str, where the file lies below ``root``; ``source``: uint8 array [bytes of the file]."""
        path, _ = self.files[index]
        return {"path": path, "source": np.fromfile(os.path.join(self.root, path), np.uint8)}


def _installed() -> list[Path]:
    """The folders of the standard library and of the packages of this Python."""
    return [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def _find(roots: Sequence[Path]) -> tuple[str, list[tuple[str, int]]]:
    """The folder that all roots have in common, and (path below it, bytes) of each file that is not empty."""
    common = os.path.commonpath([root.resolve() for root in roots])
    found: dict[tuple[int, int], tuple[str, int]] = {}
    for root in roots:
        for folder, _, names in os.walk(root.resolve()):
            for path in (os.path.join(folder, name) for name in names if name.endswith(".py")):
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # a link to nowhere
                if status.st_size:
                    entry = (os.path.relpath(path, common), status.st_size)
                    same = (status.st_dev, status.st_ino)
                    found[same] = min(entry, found.get(same, entry))
    return common, sorted(found.values())


def _spread(files: list[tuple[str, int]], max_files: int | None, max_bytes: int | None) -> list[tuple[str, int]]:
    """Files from everywhere, within both limits."""
    step = 1
    if max_files is not None:
        step = max(step, -(-len(files) // max_files))
    if max_bytes is not None:
        step = max(step, -(-sum(size for _, size in files) // max_bytes))
    chosen = files[::step]
    while max_bytes is not None and sum(size for _, size in chosen) > max_bytes:
        chosen.pop()
    return chosen
