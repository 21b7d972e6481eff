"""The groups of the `multifacet` command, one a file.

A command imports the rooms that it needs when it runs: torch alone takes seconds, and `--help` should not.
"""
