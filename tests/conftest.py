"""What every test shares: hypothesis judges what the code does, not how fast a loaded machine does it, and tries
the same examples every time.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "shardcache",
    settings(),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("shardcache")
