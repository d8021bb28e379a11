"""What ``shardcache build --from KIND`` knows."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import click

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
    if kind == "webdataset" and _are_compressed(targets):
        click.echo("--from webdataset: the tars are compressed, so they are read in one pass, in their order", err=True)
        cls = shardcache.WebDatasetStream
    try:
        inspect.signature(cls).bind(*targets, **kwargs)
    except TypeError as error:
        raise UsageError(f"--from {kind}: {cls.__name__}{inspect.signature(cls)}: {error}") from None
    return cls(*targets, **kwargs)


def _are_compressed(targets: Sequence[str]) -> bool:
    from shardcache.builder.sources.tars import are_compressed

    return are_compressed(*targets)
