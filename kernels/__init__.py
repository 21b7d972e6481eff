"""Compiled loops and what they stand on: numpy and numba, without torch, and without knowledge of the rooms above."""
