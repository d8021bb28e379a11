"""What the shards of a build are made from, whoever builds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from shardcache.builder.source import Recipe, Source
from shardcache.errors import SourceError
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
