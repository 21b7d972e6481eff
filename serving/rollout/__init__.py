"""Moving live servers from one release to the next, and back."""
