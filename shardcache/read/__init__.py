"""The read journey: manifest -> plan -> shard -> block -> buffer -> batch."""
