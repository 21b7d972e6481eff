"""Batches of triples in chunks, each side with what it is compared with."""
