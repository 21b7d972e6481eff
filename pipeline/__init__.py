"""The composition root: the `multifacet` command and whole runs."""
