"""shardcache: materialise a dataset once, then feed training from memory-mapped, compressed shards.

>>> import shardcache
>>> cache = shardcache.build(my_map_dataset, "caches/train", num_workers=8)  # doctest: +SKIP
>>> loader = shardcache.CachedDataset(cache, batch_size=256, shuffle=True).loader(num_workers=4)  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from shardcache import errors
from shardcache.errors import *  # noqa: F403

if TYPE_CHECKING:
    from shardcache.builder.build import build
    from shardcache.builder.estimate import Estimate, estimate
    from shardcache.builder.finish import finish
    from shardcache.builder.sources.files import Files, ImageFolder
    from shardcache.builder.sources.hugging_face import HuggingFace
    from shardcache.builder.sources.key_value import LMDB
    from shardcache.builder.sources.lines import Lines
    from shardcache.builder.sources.parquet import Parquet
    from shardcache.builder.sources.tars import WebDataset, WebDatasetStream
    from shardcache.integrity.repair import repair
    from shardcache.integrity.verify import verify
    from shardcache.read.cache import Cache, open
    from shardcache.read.collate import Meta, Pad, Padded
    from shardcache.read.dataset import CachedDataset
    from shardcache.read.loader import Loader
    from shardcache.registry.explain import explain
    from shardcache.registry.get_or_build import get_or_build

__version__ = "0.1.0"

_HOMES = {
    "build": "shardcache.builder.build",
    "estimate": "shardcache.builder.estimate",
    "Estimate": "shardcache.builder.estimate",
    "explain": "shardcache.registry.explain",
    "finish": "shardcache.builder.finish",
    "get_or_build": "shardcache.registry.get_or_build",
    "open": "shardcache.read.cache",
    "Cache": "shardcache.read.cache",
    "CachedDataset": "shardcache.read.dataset",
    "Loader": "shardcache.read.loader",
    "Meta": "shardcache.read.collate",
    "Pad": "shardcache.read.collate",
    "Padded": "shardcache.read.collate",
    "Files": "shardcache.builder.sources.files",
    "HuggingFace": "shardcache.builder.sources.hugging_face",
    "ImageFolder": "shardcache.builder.sources.files",
    "LMDB": "shardcache.builder.sources.key_value",
    "Lines": "shardcache.builder.sources.lines",
    "Parquet": "shardcache.builder.sources.parquet",
    "WebDataset": "shardcache.builder.sources.tars",
    "WebDatasetStream": "shardcache.builder.sources.tars",
    "repair": "shardcache.integrity.repair",
    "verify": "shardcache.integrity.verify",
}

__all__ = [
    "Cache",
    "CachedDataset",
    "Estimate",
    "Files",
    "HuggingFace",
    "ImageFolder",
    "LMDB",
    "Lines",
    "Loader",
    "Meta",
    "Pad",
    "Padded",
    "Parquet",
    "WebDataset",
    "WebDatasetStream",
    "build",
    "estimate",
    "explain",
    "finish",
    "get_or_build",
    "open",
    "repair",
    "verify",
    *errors.__all__,
]


def __getattr__(name: str) -> Any:
    """The public names are loaded when they are first used, so that the command line starts without torch."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shardcache' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
