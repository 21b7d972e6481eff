"""What benchmarks run in: rows, the machine that they are from, the registry, and results on file."""

from benchmarks.harness.row import HIGHER, LOWER, Metric, Peer, Row

__all__ = ["HIGHER", "LOWER", "Metric", "Peer", "Row"]
