"""Benchmarks of the graph store."""
