"""Datasets that Hugging Face's library saved."""

import os
from pathlib import Path
from typing import Any

from shardcache.builder.sources.patterns import folder_of, missing
from shardcache.errors import MissingExtraError, SourceError, UsageError


class HuggingFace:
    """The rows of a dataset that ``Dataset.save_to_disk`` saved; images and audio are the bytes of their files.

    Args:
        path: the folder it was saved in; of a ``DatasetDict``, the folder of one of its splits.

    Raises:
        MissingExtraError: datasets is not installed.
        UsageError: several splits are there.
        SourceError: the folder is not there or not such a dataset, or has images or audio within lists or dicts.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = folder_of(path)
        self._rows, self._media = _loaded(self.path)

    def __reduce__(self) -> Any:
        return type(self), (self.path,)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._rows[index]
        for name in self._media:
            if row[name] is not None:
                row[name] = row[name]["bytes"] if row[name]["bytes"] is not None else _read(row[name]["path"])
        return row


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _loaded(path: Path) -> tuple[Any, list[str]]:
    """The dataset with nothing decoded, and the names of its columns of images and audio."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(missing("datasets", "hf")) from None
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever it finds
        raise SourceError(f"{path}: cannot be read as a saved dataset: {error}") from error
    if isinstance(rows, datasets.DatasetDict):
        raise UsageError(
            f"{path}: holds several datasets; give one of them: {', '.join(str(path / name) for name in rows)}"
        )
    kinds = (datasets.Image, datasets.Audio)
    media = [name for name, feature in rows.features.items() if isinstance(feature, kinds)]
    for name in media:
        rows = rows.cast_column(name, type(rows.features[name])(decode=False))
    for name, feature in rows.features.items():
        if name not in media and any(kind.__name__ + "(" in repr(feature) for kind in kinds):
            raise SourceError(f"{path}, column {name!r}: images and audio within lists or dicts are not supported")
    return rows.with_format(None), media
