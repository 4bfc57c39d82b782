"""Where an engine leaves PyTorch."""
