"""Triples as columns, out of files, frames and views."""
