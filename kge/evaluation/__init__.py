"""Ranks of held-out edges, by protocols, and the predictions of a trained model."""
