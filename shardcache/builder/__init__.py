"""The build journey: source -> rows -> blocks -> shard -> manifest."""
