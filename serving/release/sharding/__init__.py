"""Which shard of a release holds an id, and how tables are split by it."""
