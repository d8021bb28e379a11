"""What every test shares: hypothesis judges what the code does, not how fast a loaded machine does it."""

from hypothesis import HealthCheck, settings

settings.register_profile("shardcache", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shardcache")
