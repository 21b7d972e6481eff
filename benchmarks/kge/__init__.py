"""Benchmarks of knowledge graph embedding."""
