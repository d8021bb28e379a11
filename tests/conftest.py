"""What every test shares: hypothesis judges what the code does, not how fast a loaded machine does it, and tries
the same examples every time. And no test sees another's worker processes.
"""

import gc
import multiprocessing
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "shardcache",
    settings(),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("shardcache")


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test() -> Iterator[None]:
    """The error of a loader that a test has caught keeps the loader, in a cycle, and that its workers."""
    yield
    if multiprocessing.active_children():
        gc.collect()
