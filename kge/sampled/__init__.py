"""Training with sampled negatives, by closed-form gradients."""
