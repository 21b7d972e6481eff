"""Metrics of predictions, with intervals, by segment, and tests between models."""
