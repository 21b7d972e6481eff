"""Losses of queries over shared candidates, and their gradients."""
