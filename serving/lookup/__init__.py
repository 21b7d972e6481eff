"""The lookup server: the CPU half of releases, rows by id."""
