"""Whether engines still say what PyTorch says."""
