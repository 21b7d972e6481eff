"""A store's file: its layout, its writer, its transactions, and where clustered edges are kept."""
