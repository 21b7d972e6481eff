"""Questions to a graph, each answered by an Arrow table."""
