"""A run as a page, with its figures."""
