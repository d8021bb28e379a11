"""Fields as their user sees them."""

from pathlib import Path

import shardcache


def test_a_cache_shows_nothing_that_could_steer_a_terminal(tmp_path: Path):
    samples = [{"\x1b]0;owned\x07": 1, "right\u202eleft": "\x1b[2J"}] * 3
    cache = shardcache.build(samples, tmp_path / "cache", progress=False)
    assert "\\x1b]0;owned\\x07" in repr(cache)
    assert all(line.isprintable() for line in repr(cache).splitlines())
    assert cache[0] == samples[0]
