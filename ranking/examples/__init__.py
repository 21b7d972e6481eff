"""Labelled examples: read, drawn, described by features, and batched."""
