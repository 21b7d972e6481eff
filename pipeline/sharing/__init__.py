"""Artifacts elsewhere: cards that tell what a snapshot is, and copies on Hugging Face's hub, object stores and file systems."""
