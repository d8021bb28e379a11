"""Whether a cache is what was written, and how to make it so again."""
