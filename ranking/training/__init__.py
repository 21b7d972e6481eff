"""Training a ranker, in one process or under DistributedModelParallel."""
