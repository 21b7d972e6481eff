"""What a batch of positives is compared with."""
