"""Training against all entities."""
