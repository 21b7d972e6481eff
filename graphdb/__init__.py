"""The DuckDB graph store: schema, loading, windows, exports."""
