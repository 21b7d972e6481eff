"""A window as shards in random order: what a training reads that does not fit one memory, each process its own."""
