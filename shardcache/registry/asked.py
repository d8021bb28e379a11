"""What a call of ``get_or_build`` asks for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardcache.registry.fingerprint import Fingerprint, decisive, fingerprint


@dataclass(frozen=True)
class Asked:
    """The arguments that decide which cache is meant, and with which options it is built."""

    name: str
    factory: Any
    kwargs: Mapping[str, Any]
    version: str | None
    deps: tuple[Any, ...]
    data_check: str
    options: Mapping[str, Any]
    given_root: str | os.PathLike[str] | None
    allow_shared: bool

    def fingerprint(self, root: str) -> Fingerprint:
        """The parts of what is asked for, as it is now."""
        return fingerprint(
            self.factory,
            self.kwargs,
            version=self.version,
            deps=self.deps,
            data_check=self.data_check,
            options=decisive(self.options),
            skip=root,
        )
