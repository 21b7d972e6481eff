"""Releases, the CPU lookup server and the ranker."""
