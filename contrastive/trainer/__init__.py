"""Epochs and steps over positives, in one process or in several."""
