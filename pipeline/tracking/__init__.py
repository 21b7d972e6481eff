"""Runs told to MLflow and TensorBoard."""
