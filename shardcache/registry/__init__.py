"""One cache, many experiments: what a cache was made of, whether it may be used again, and what may be deleted."""
