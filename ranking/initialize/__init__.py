"""Tables' first rows, out of snapshots, with a report of what was filled."""
