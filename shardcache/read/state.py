"""The state of a training's data: a few plain values, and whether they fit what is to go on from them."""

from collections.abc import Mapping
from typing import Any

from shardcache.errors import UsageError

VERSION = 1


def check(state: Any, identity: Mapping[str, Any], world_size: int) -> None:
    """:class:`UsageError` where a state is of another order of batches; it says what to write instead."""
    if not isinstance(state, Mapping) or state.get("version") != VERSION:
        raise UsageError(f"not a state of a Loader of this version of shardcache: {state!r}")
    then, now = state.get("global_batch_size"), identity["global_batch_size"]
    if then != now:
        fits = isinstance(then, int) and then % world_size == 0
        advice = f"pass batch_size={(then or 0) // world_size}" if fits else "use a world size that divides it"
        raise UsageError(
            f"this state was saved with a global batch of {then}; now it is {now} "
            f"({world_size} x {now // world_size}): {advice}"
        )
    for name, value in identity.items():
        if state.get(name) != value:
            raise UsageError(
                f"this state was saved with {name}={state.get(name)!r}; now it is {value!r}: {_advice(name, state)}"
            )


def _advice(name: str, state: Mapping[str, Any]) -> str:
    if name == "digest":
        return "it is of another cache, or of another view of it"
    if name == "span":
        return "read the same columns through the same shuffle_buffer as then"
    return f"pass {name}={state.get(name)!r}"
