"""Benchmarks of embedding tables."""
