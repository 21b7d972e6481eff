"""Training of tables that several processes share."""
