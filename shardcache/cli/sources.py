"""What ``shardcache build --from KIND`` knows."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from shardcache.errors import UsageError

KINDS = {
    "imagefolder": "ImageFolder",
    "files": "Files",
    "webdataset": "WebDataset",
    "parquet": "Parquet",
    "hf": "HuggingFace",
    "lmdb": "LMDB",
    "lines": "Lines",
}
IN_FILE_ORDER = ("parquet",)  # slow at random


def make_source(kind: str, targets: Sequence[str], kwargs: Mapping[str, Any]) -> Any:
    """The source of a kind; :class:`UsageError` where its class does not take these arguments."""
    import shardcache

    cls = getattr(shardcache, KINDS[kind])
    try:
        inspect.signature(cls).bind(*targets, **kwargs)
    except TypeError as error:
        raise UsageError(f"--from {kind}: {cls.__name__}{inspect.signature(cls)}: {error}") from None
    return cls(*targets, **kwargs)
