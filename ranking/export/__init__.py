"""What a trained ranker leaves for serving."""
