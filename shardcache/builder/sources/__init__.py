"""Map-style datasets over what people have: one file a kind. What a file holds is kept as its bytes."""
