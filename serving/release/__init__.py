"""A release: both halves of a trained model under one version, written, opened and checked."""
