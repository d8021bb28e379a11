"""What the shards of a build are made from, whoever builds them, and how their errors come back."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from shardcache.builder.shards import ShardRecord
from shardcache.builder.source import Recipe, Source
from shardcache.builder.staging import record_path
from shardcache.errors import BuildError, ShardCacheError, SourceError
from shardcache.format.files import storage_errors, write_whole
from shardcache.format.manifest import Manifest


class Work(msgspec.Struct, frozen=True):
    """The dataset, the plan and the directory that the shards go to. Can be pickled where the dataset can."""

    recipe: Recipe
    plan: Manifest
    directory: Path

    def source(self, make: Callable[[Any], Source] = Source) -> Source:
        """The source in another process than that which drew up the plan."""
        source = make(self.recipe())
        source.tolerance = self.recipe.tolerance
        if source.samples != self.plan.samples:
            raise SourceError(
                f"len() of the dataset is {source.samples} in a worker, {self.plan.samples} in the parent"
            )
        return source

    def keep(self, record: ShardRecord) -> None:
        """Remember that a shard is finished, also after a power cut."""
        path = record_path(self.directory, record.number)
        with storage_errors(path):
            write_whole(path, msgspec.json.encode(record))


def sendable(error: BaseException) -> ShardCacheError:
    """An error that survives the way: our types are built from one string, and the traceback rides along as a note."""
    sent = error if isinstance(error, ShardCacheError) else BuildError(f"{type(error).__name__}: {error}")
    sent.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)))
    sent.__cause__ = sent.__context__ = None
    return sent
