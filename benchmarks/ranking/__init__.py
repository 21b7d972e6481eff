"""Benchmarks of ranking."""
