"""The ranker: one request's ids looked up while its features are read, both halves scored together."""
