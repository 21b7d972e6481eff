"""Positives: weighted distinct pairs of query and item, and how they are drawn."""
