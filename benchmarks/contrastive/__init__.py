"""Benchmarks of contrastive pretraining."""
