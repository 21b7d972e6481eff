"""The groups of the `multifacet` command, one a file."""
