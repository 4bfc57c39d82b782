"""Several checkpoints in one graph."""
