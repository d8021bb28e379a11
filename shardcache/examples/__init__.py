"""Examples that run: ``python -m shardcache.examples.quickstart``."""
