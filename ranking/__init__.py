"""TorchRec CTR/CVR models whose tables start from snapshots."""
