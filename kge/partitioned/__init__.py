"""Training of tables that memory does not hold, bucket by bucket."""
